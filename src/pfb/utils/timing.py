"""Measure steps: time in pairs, memory by what autograd keeps. Used by the trainer's summary and by
the benchmarks.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

Clock = Callable[[], float]


def clock_of(name: str) -> Clock:
    """``"wall"`` for elapsed seconds, ``"cpu"`` for those of this process, which are steadier on a
    busy machine.
    """
    return time.process_time if name == "cpu" else time.perf_counter


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def interleaved_seconds(
    steps: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int,
    warmup: int = 2,
    clock: Clock = time.perf_counter,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time several steps in turn, in another order each round, so that a drift of the machine hits
    all alike, and what a step leaves behind (memory, caches) not always the same one.

    Args:
        steps: what to time, by name.
        device: synchronised on both sides of the clock.
        repeats: counted rounds.
        warmup: rounds that run first and are not counted.
        clock: ``time.perf_counter`` for elapsed, ``time.process_time`` for CPU seconds (steadier on
            a busy machine).
        on_round: called after every round, for progress.

    Returns:
        Seconds per name and counted round; equal positions belong to the same round.

    Example:
        >>> import torch
        >>> steps = {"a": lambda: None, "b": lambda: None}
        >>> seconds = interleaved_seconds(steps, torch.device("cpu"), repeats=3)
        >>> {name: len(values) for name, values in seconds.items()}
        {'a': 3, 'b': 3}
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(warmup + repeats):
        for name in in_another_order(steps, round_number):
            synchronize(device)
            begin = clock()
            steps[name]()
            synchronize(device)
            if round_number >= warmup:
                seconds[name].append(clock() - begin)
        on_round()
    return seconds


def in_another_order(names: Iterable[str], round_number: int) -> list[str]:
    """These names in the order of one round: over as many rounds as there are names (twice as many
    of an odd number) each follows every other equally often (Williams, Aust. J. Sci. Res. 1949).

    Example:
        >>> ["".join(in_another_order("abcd", number)) for number in range(4)]
        ['adbc', 'bacd', 'cbda', 'dcab']
    """
    names = list(names)
    n = len(names)
    turn, backwards = (round_number, False) if n % 2 == 0 else (round_number // 2, round_number % 2 == 1)
    zigzag = [place // 2 if place % 2 == 0 else n - 1 - place // 2 for place in range(n)]
    order = [names[(place + turn) % n] for place in zigzag]
    return order[::-1] if backwards else order


@dataclass(frozen=True)
class Spread:
    """Median with the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    @classmethod
    def of_ratios(cls, values: list[float], base: list[float]) -> Spread:
        """Ratio to ``base`` round by round; a clock of coarse ticks may have told 0 of both."""
        return cls.of([a / b if b else 1.0 for a, b in zip(values, base, strict=True)])


@dataclass
class SavedBytes:
    """Bytes that autograd keeps for the backward pass; filled by :func:`count_saved_bytes`."""

    total: int = 0
    _seen: set[int] = field(default_factory=set, repr=False)


@contextlib.contextmanager
def count_saved_bytes() -> Iterator[SavedBytes]:
    """Count the storages that the graph built inside this context keeps alive, each once, on any
    device.

    Example:
        >>> import torch
        >>> x = torch.ones(10, requires_grad=True)
        >>> with count_saved_bytes() as saved:
        ...     y = x.exp()
        >>> saved.total
        40
    """
    saved = SavedBytes()
    alive: list[torch.UntypedStorage] = []  # a freed storage's address could be given out again

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in saved._seen:
            saved._seen.add(storage.data_ptr())
            alive.append(storage)
            saved.total += storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield saved
