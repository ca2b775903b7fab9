"""Items are handed to processes until the time is up, and each result is written as it comes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from studies.gpu.plan import Item

ROOT = Path(__file__).resolve().parents[2]
AHEAD = 8  # items that are looked at for one that fits into the time
LATE = 1.15  # of what is expected, a training may take
LINES = "lines.jsonl"

Answer = dict[str, Any]


class Journal:
    """The file of results, a JSON object on each line.

    Args:
        folder: where it lies.
        always: what every line holds.

    Attributes:
        lines: all that stand there.
    """

    def __init__(self, folder: Path, always: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.always = folder / LINES, always
        self.lines = read(folder)
        self.origin: dict[str, Any] = dict.fromkeys(("device", "torch", "cuda", "cudnn"))
        self._lock = threading.Lock()

    def has(self, item: Item) -> bool:
        """Whether the item was measured with these settings."""
        settings = json.loads(json.dumps(item.settings))
        return any(
            line["item"] == item.name and line["settings"] == settings and line["status"] == "done"
            for line in self.lines
        )

    def write(self, name: str, settings: dict[str, Any], answer: Answer) -> None:
        """Append one line, and make sure that it is on the disk."""
        with self._lock:
            self.origin |= answer.pop("origin", {})
            seed = settings.get("seed")
            line = {"item": name, **answer, "seed": seed, "settings": settings, **self.origin, **self.always}
            self.lines.append(line)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())


def read(folder: Path) -> list[dict[str, Any]]:
    """All lines in a folder; one that was cut off in the middle is left out."""
    path, found = folder / LINES, []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


class Worker:
    """A process of :mod:`studies.gpu.worker`; its imports run while others measure."""

    def __init__(self, data: Path, device: str, errors: IO[str]) -> None:
        cache = Path(tempfile.gettempdir()) / f"pfb-gpu-{os.getuid()}-compiled"
        environment = {
            "OMP_NUM_THREADS": "2",
            "TORCHINDUCTOR_COMPILE_THREADS": "8",
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
            "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(cache),
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "studies.gpu.worker", str(data), device],
            cwd=ROOT,
            env={**environment, **os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            process_group=0,
        )

    def ask(self, item: Item, until: float) -> Answer:
        """Its answer; a process that has none by then is ended."""
        begun = time.monotonic()
        told, output = b"", self.process.stdout
        assert self.process.stdin is not None
        assert output is not None
        try:
            self.process.stdin.write(json.dumps({"kind": item.kind, "settings": item.settings}).encode() + b"\n")
            self.process.stdin.flush()
            while not told.endswith(b"\n"):
                if not select.select([output], [], [], max(0.0, until - time.monotonic()))[0]:
                    self.end()
                    return {"status": "cut off", "seconds": round(time.monotonic() - begun, 2)}
                part = os.read(output.fileno(), 1 << 16)
                if not part:
                    raise BrokenPipeError
                told += part
        except BrokenPipeError:
            self.end()
            code = self.process.returncode
            error = f"its process ended with exit code {code}; errors.log may say why"
            return {"status": "failed", "error": error, "seconds": round(time.monotonic() - begun, 2)}
        answer: Answer = json.loads(told)
        return answer

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        """With all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Queue:
    """Items that are not measured yet, for several threads.

    Args:
        items: in order of worth.
        journal: knows which are done.
    """

    def __init__(self, items: list[Item], journal: Journal) -> None:
        self.items = [item for item in items if not journal.has(item)]
        self._lock = threading.Lock()
        self._pace: list[float] = []  # seconds that a thousand samples took

    def take(self, until: float) -> Item | None:
        """The next that ends before then, if any of the next few does."""
        with self._lock:
            left = until - time.monotonic()
            fits = (item for item in self.items[:AHEAD] if self.expected(item) <= left)
            item = next(fits, None)
            if item is not None:
                self.items.remove(item)
            return item

    def expected(self, item: Item) -> float:
        """Seconds that an item will take, by what the trainings before it took."""
        pace = statistics.median(self._pace) if self._pace and item.work else None
        return item.seconds if pace is None else LATE * pace * item.work

    def learn(self, item: Item, answer: Answer) -> None:
        """How long it took."""
        if item.work and answer["status"] == "done":
            with self._lock:
                self._pace.append(answer["seconds"] / item.work)


class Scheduler:
    """Runs queues on workers.

    Args:
        journal: where results go.
        start: makes a worker, which answers as :class:`Worker` does.
        say: prints a line.
    """

    def __init__(self, journal: Journal, start: Callable[[], Any], say: Callable[[str], None]) -> None:
        self.journal, self.start, self.say = journal, start, say
        self.workers: list[Any] = []  # all that were started
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self.closed = False

    def begin(self, count: int) -> None:
        """Start so many workers, which import what they need while others measure."""
        for _ in range(count):
            self._idle.append(self._started())

    def run(self, parts: list[tuple[Queue, int]], until: float, end: float) -> None:
        """Take items of each queue with so many workers, as long as one fits in before ``until``;
        those that are late are cut off at ``end``.
        """
        if sum(count for _, count in parts) == 1:
            self._serve(next(queue for queue, count in parts if count), until, end)
            return
        arguments = [(queue, until, end) for queue, count in parts for _ in range(count)]
        threads = [threading.Thread(target=self._serve, args=a, daemon=True) for a in arguments]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _serve(self, queue: Queue, until: float, end: float) -> None:
        worker = None
        while not self.closed and (item := queue.take(until)) is not None:
            if worker is None or not worker.alive:
                worker = self._waiting()
            answer = worker.ask(item, end)
            if self.closed:
                return
            queue.learn(item, answer)
            self.journal.write(item.name, item.settings, answer)
            self.say(f"{item.name}: {told(answer)}")
        if worker is not None and worker.alive:
            with self._lock:
                self._idle.append(worker)

    def _waiting(self) -> Any:
        with self._lock:
            return self._idle.pop() if self._idle else self._started()

    def _started(self) -> Any:
        worker = self.start()
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        """End all workers."""
        self.closed = True
        for worker in self.workers:
            worker.end()


def told(answer: Answer) -> str:
    """An answer in a few words."""
    text = f"{answer['status']} in {answer['seconds']:.0f} s"
    result = answer.get("result", {})
    if "test_accuracy" in result:
        return f"{text}, test accuracy {100 * result['test_accuracy']:.2f} %"
    if "step_seconds" in result:
        medians = {name: statistics.median(times) for name, times in result["step_seconds"].items()}
        steps = ", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in medians.items())
        return f"{text}, ms: {steps}"
    if "call_seconds" in result:
        return f"{text}, {1000 * statistics.median(result['call_seconds']):.2f} ms"
    return f"{text} {result or answer.get('error', '')}"
