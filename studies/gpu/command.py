"""The run from its first to its last second."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studies.gpu import packing, scheduler, table
from studies.gpu.plan import Item, plan
from studies.gpu.scheduler import Answer, Journal, Queue, Scheduler, Worker
from studies.gpu.settings import GpuConfig

SPARED = 4.0  # seconds before the end, for the table
LATE = 10.0  # seconds that trainings may take longer before compiled steps are timed


def run(config: GpuConfig) -> Path:
    """Measure what is missing, until the time is up; returns the tables' path.

    Raises:
        FileNotFoundError: no images in ``--data``, or in ``--pack``.
    """
    if config.pack is not None:
        return packing.pack(config.pack, config.data)
    if not config.render:
        with _ending_on_signals():
            _measure(config)
    path = config.out / "table.md"
    path.write_text(table.render(scheduler.read(config.out)))
    return path


def _measure(config: GpuConfig) -> None:
    begun = time.monotonic()
    end = begun + 60 * config.minutes - SPARED

    def say(text: str) -> None:
        now = time.monotonic()
        print(f"[{now - begun:4.0f} s, {max(end - now, 0):4.0f} s left] {text}", flush=True)

    parts = plan(config)
    journal = Journal(config.out, {"commit": config.commit or _commit()})
    alone, beside, last = (Queue(items, journal) for items in (parts.alone, parts.beside, parts.last))
    needed = {item.settings["model"] for item in last.items}
    caches = Queue([item for item in parts.caches if item.settings["model"] in needed], journal)
    data, several = config.data.resolve(), max(1, config.workers)
    if beside.items and not (data / packing.FILE).exists():
        say(f"no {packing.FILE} in {data}: nothing is trained; write it with --pack FOLDER")
        beside.items.clear()
    with (config.out / "errors.log").open("a") as errors:

        def start() -> Any:
            return Worker(data, config.device, errors) if config.workers else InProcess(data, config.device)

        runs = Scheduler(journal, start, say)
        try:
            if config.workers:
                runs.begin(min(1, len(alone.items)) + min(several, len(beside.items)) + len(caches.items))
            say(f"{len(alone.items) + len(last.items)} items to be timed, {len(beside.items)} trainings")
            decoding = threading.Thread(target=_decode, args=(data, say), daemon=True)
            if beside.items:
                decoding.start()
            runs.run([(alone, 1)], end, end)
            if beside.items:
                decoding.join()
            if config.workers:
                reserve = end - sum(item.seconds for item in last.items)
                runs.run([(beside, several), *((caches, 1) for _ in caches.items)], reserve, min(reserve + LATE, end))
            runs.run([(last, 1)], end, end)
            runs.run([(beside, several)], end, end)
        finally:
            runs.close()
    left = [*alone.items, *last.items, *beside.items]
    if left:
        said = {"status": "skipped", "seconds": 0.0, "skipped": [item.name for item in left]}
        journal.write("skipped", {}, said)
        say(f"no time for {len(left)} items, the first of them {left[0].name}")


def _decode(data: Path, say: Any) -> None:
    begun = time.monotonic()
    packing.decode(data)
    say(f"images decoded in {time.monotonic() - begun:.1f} s")


class InProcess:
    """Stands for a worker where there is none."""

    alive = True

    def __init__(self, data: Path, device: str) -> None:
        import torch

        from studies.gpu import worker

        worker.prepare()
        self.data, self.device = data, torch.device(device)

    def ask(self, item: Item, until: float) -> Answer:
        from studies.gpu import worker

        return worker.measure({"kind": item.kind, "settings": item.settings}, self.data, self.device)

    def end(self) -> None:
        """Nothing to do."""


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """A run that is told to end leaves no process behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _commit() -> str:
    """Of the checkout; empty where there is none."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, cwd=scheduler.ROOT, check=False).stdout.strip()
    except OSError:
        return ""
