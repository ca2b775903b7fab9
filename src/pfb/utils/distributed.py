"""What ranks tell each other, at moments that only the step number decides."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks in the default process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(flat: Tensor) -> None:
    """Replace ``flat`` by its sum over all ranks, in place, in one collective; nothing on a single
    rank.
    """
    if world_size() > 1:
        dist.all_reduce(flat)


def concatenated(rows: Tensor) -> Tensor:
    """The rows ``[P, D]`` of all ranks, one rank after the other, equal on every rank; P must be.

    One collective of fixed size.
    """
    if world_size() == 1:
        return rows
    everything = rows.new_empty(world_size() * rows.size(0), rows.size(1))
    dist.all_gather_into_tensor(everything, rows.contiguous())
    return everything


def rows_of_all_ranks(rows: Tensor, n: int) -> Tensor:
    """The first ``n`` rows over all ranks, taken from the ranks in turn, equal on every rank; ``[<=
    n, D]``.

    Each rank offers at most ``n`` rows and may offer none. One collective of fixed size; reads the
    counts on the host, so call it only while seeding.
    """
    if world_size() == 1:
        return rows[:n]
    ranks, rank = world_size(), dist.get_rank()
    offered = min(len(rows), n)
    slots = rows.new_zeros(ranks, n, rows.size(1) + 1)  # the last column marks the rows in use
    slots[rank, :offered, :-1] = rows[:offered]
    slots[rank, :offered, -1] = 1
    dist.all_reduce(slots)
    in_turn = slots.transpose(0, 1).flatten(0, 1)
    return in_turn[in_turn[:, -1] > 0][:n, :-1]
