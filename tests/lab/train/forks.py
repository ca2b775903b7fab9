"""``pfb`` in processes of its own, without importing everything for each of them.

One process imports the laboratory and forks a child for every call; a child can stop itself at a
change it makes to its run's folder, so that drills hit the same places however loaded the machine
is.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}
SECONDS = 120


@dataclass
class Ended:
    """How a call ended: ``code`` is negative for a signal; ``changes`` it made to the run's folder,
    if they were counted.
    """

    code: int
    output: str
    error: str
    changes: int


class Forks:
    """The process that forks; a context manager, which leaves no process behind."""

    def __enter__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.lab.train.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def pfb(self, *arguments, stop=None, environment=None):
        """Run ``pfb`` with these arguments to its end.

        Args:
            arguments: of the command line.
            stop: folder, number and signal: it gets the signal at the change of that number in this
                folder.
            environment: more variables.
        """
        return self.together({"arguments": arguments, "stop": stop, "environment": environment})[0]

    def together(self, *calls):
        """Several calls at the same time."""
        plain = [{**call, "arguments": [str(a) for a in call["arguments"]]} for call in calls]
        self._process.stdin.write(json.dumps(plain, default=str) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], 2 * SECONDS)
        assert ready, "the forking process does not answer"
        return [Ended(**ended) for ended in json.loads(self._process.stdout.readline())]

    def ranks(self, port, *arguments):
        """The same call by two processes that train together, as torchrun starts them."""
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environments = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        return self.together(*({"arguments": arguments, "environment": e} for e in environments))


def serve():
    """Answer every line of calls with a line of ends."""
    for name in (
        "pfb.lab.report",
        "pfb.lab.train.loop",
        "torch._dynamo",
        "torch.utils.tensorboard",
        "sklearn.datasets",
    ):
        importlib.import_module(name)  # all that a child would import
    from tests.lab.train.runs import shorten

    shorten(setattr)
    gc.freeze()  # or every child would copy, and look through, all that was imported
    for line in sys.stdin:
        calls = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            places = [Path(folder) / str(number) for number in range(len(calls))]
            children = [_start(call, place) for call, place in zip(calls, places, strict=True)]
            codes = [_code(child) for child in children]
            ends = [_ended(code, place) for code, place in zip(codes, places, strict=True)]
        print(json.dumps(ends), flush=True)


def _start(call, place):
    place.mkdir()
    if child := os.fork():
        return child
    for number, name in ((1, "output"), (2, "error")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), number)
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
        os.environ.update(call.get("environment") or {})
        from pfb.lab import cli

        if call.get("stop"):
            folder, number, signal_number = call["stop"]
            _stop_at(folder, number, signal_number, place / "changes")
        cli.main(call["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _code(child):
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _ended(code, place):
    changes = place / "changes"
    texts = {name: (place / name).read_text() for name in ("output", "error")}
    return {"code": code, **texts, "changes": changes.stat().st_size if changes.exists() else 0}


def _stop_at(folder, number, signal_number, counter):
    """Count changes in a folder as bytes of ``counter``, and send this process a signal before that
    of a number is made.
    """
    import torch

    count = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def change():
        if threading.current_thread() is threading.main_thread():
            os.write(count, b".")
            if os.fstat(count).st_size == number:
                signal.raise_signal(signal_number)

    def audit(event, arguments):
        if event not in CHANGES:
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        relative_to_open_folder = event in ("os.remove", "os.rmdir") and arguments[1] != -1  # as rmtree does
        if relative_to_open_folder or str(arguments[0]).startswith(folder):
            change()

    def before(function):
        def changing(*arguments, **options):
            change()
            return function(*arguments, **options)

        return changing

    os.fsync, torch.save = before(os.fsync), before(torch.save)
    sys.addaudithook(audit)


if __name__ == "__main__":
    serve()
