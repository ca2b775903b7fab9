"""What a function takes when it runs in a process of its own: seconds, and memory at its peak."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch


@dataclass(frozen=True)
class Taken:
    """What came back, and what it took.

    Attributes:
        result: what the function returned.
        error: the first line of what it raised instead; empty if it did not.
        seconds, cpu_seconds: from its call to its end.
        peak_bytes: most memory of the process meanwhile, without what it had before.
    """

    result: Any
    error: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def taken(function: Callable[..., Any], *args: Any, threads: int | None = None) -> Taken:
    """Call a function of a module with ``args`` in a fresh process; all must be picklable."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_call, args=(theirs, function, args, threads))
    process.start()
    theirs.close()
    try:
        found: Taken = ours.recv()
    except EOFError:
        found = Taken(None, "its process was killed", 0.0, 0.0, 0)
    else:
        ours.send("received")  # tensors are shared until then
    process.join()
    return found


def cpu_seconds_so_far() -> float:
    """Of this process and those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _call(pipe: Any, function: Callable[..., Any], args: tuple[Any, ...], threads: int | None) -> None:
    import resource

    if threads is not None:
        torch.set_num_threads(threads)
    multiprocessing.set_start_method("fork", force=True)  # what the function starts, starts as usual
    before, begin, cpu = psutil.Process().memory_info().rss, time.perf_counter(), cpu_seconds_so_far()
    result, error = None, ""
    try:
        result = function(*args)
    except Exception as raised:  # whatever a tool raises
        error = f"{type(raised).__name__}: {raised}".splitlines()[0]
    seconds, cpu_seconds = time.perf_counter() - begin, cpu_seconds_so_far() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send(Taken(result, error, seconds, cpu_seconds, max(0, peak - before)))
    pipe.recv()
