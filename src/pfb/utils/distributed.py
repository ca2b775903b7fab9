"""What ranks tell each other, at moments that only the step number decides."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

_local = threading.local()


@contextlib.contextmanager
def among(group: Any) -> Iterator[None]:
    """Inside, this thread talks to the ranks of this process group only; ``None``: to all."""
    before = getattr(_local, "group", None)
    _local.group = group
    try:
        yield
    finally:
        _local.group = before


def group() -> Any:
    """The process group in force; ``None`` is the default one."""
    return getattr(_local, "group", None)


def is_running() -> bool:
    """Whether there is a process group at all."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of ranks in the group; 1 without one."""
    return dist.get_world_size(group()) if is_running() else 1


def rank() -> int:
    """This process' place in the group; 0 without one."""
    return dist.get_rank(group()) if is_running() else 0


def everybodys(value: Any) -> list[Any]:
    """This small value of each rank, in their order: one collective that waits for the device."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=group())
    return values


def sum_over_ranks(flat: Tensor) -> None:
    """Replace ``flat`` by its sum over all ranks, in place, in one collective; nothing on a single
    rank.
    """
    if world_size() > 1:
        dist.all_reduce(flat, group=group())


def concatenated(rows: Tensor) -> Tensor:
    """The rows ``[P, D]`` of all ranks, one rank after the other, equal on every rank; P must be.

    One collective of fixed size.
    """
    if world_size() == 1:
        return rows
    everything = rows.new_empty(world_size() * rows.size(0), rows.size(1))
    dist.all_gather_into_tensor(everything, rows.contiguous(), group=group())
    return everything


def rows_of_all_ranks(rows: Tensor, n: int) -> Tensor:
    """The first ``n`` rows over all ranks, taken from the ranks in turn, equal on every rank; ``[<=
    n, D]``.

    Each rank offers at most ``n`` rows and may offer none. One collective of fixed size; reads the
    counts on the host, so call it only while seeding.
    """
    if world_size() == 1:
        return rows[:n]
    ranks, mine = world_size(), rank()
    offered = min(len(rows), n)
    slots = rows.new_zeros(ranks, n, rows.size(1) + 1)  # the last column marks the rows in use
    slots[mine, :offered, :-1] = rows[:offered]
    slots[mine, :offered, -1] = 1
    dist.all_reduce(slots, group=group())
    in_turn = slots.transpose(0, 1).flatten(0, 1)
    return in_turn[in_turn[:, -1] > 0][:n, :-1]


def check_settings(settings: list[dict[str, str]], way_out: str) -> None:
    """The settings of all ranks, by name, must be those of rank 0.

    Raises:
        RuntimeError: they are not; the message names the first that differs.

    Example:
        >>> check_settings([{"prune": "0.4"}, {"prune": "0.5"}], "make both alike")
        Traceback (most recent call last):
        RuntimeError: the ranks have different settings: `prune` is 0.4 on rank 0 and 0.5 on rank 1;
        make both alike
    """
    for place, theirs in enumerate(settings):
        for name, value in settings[0].items():
            if theirs.get(name) != value:
                raise RuntimeError(
                    f"the ranks have different settings: `{name}` is {value} on rank 0 and {theirs.get(name)} on rank "
                    f"{place}; {way_out}"
                )
