"""Groups of near-copies: leaders and their followers, as those of a copy need not be copies."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from pfb.copies.reach import in_reach

BLOCK = 512  # rows that are made followers or leaders at a time
T = TypeVar("T", bound=Hashable)


def led(near: Mapping[T, Iterable[T]]) -> tuple[tuple[T, ...], ...]:
    """In the order of their numbers of near-copies, each that is free leads those of its own that
    are free.

    Args:
        near: the near-copies of each, in both directions.

    Returns:
        Groups of two and more, the leader first; the largest group first.

    Example:
        >>> led({"a": ["b"], "b": ["a", "c"], "c": ["b", "d"], "d": ["c"]})
        (('b', 'a', 'c'),)
    """
    lists = {member: list(others) for member, others in near.items()}
    taken: set[T] = set()
    groups: list[tuple[T, ...]] = []
    for member in sorted(lists, key=lambda m: -len(lists[m])):
        if member in taken:
            continue
        taken.add(member)
        mine: list[T] = [other for other in lists[member] if other not in taken]
        taken.update(mine)
        if mine:
            groups.append((member, *mine))
    return tuple(sorted(groups, key=lambda group: -len(group)))


def followed(
    rows_FD: Tensor, radius_F: Tensor, count_F: Tensor, near_leader: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Whom each row follows, ``[F]`` int64: in the order of their counts each follows a leader
    within reach, if there is one, or else leads. So near-copies of near-copies do not chain on.

    Args:
        rows_FD: the near-copies.
        radius_F: how far each reaches.
        count_F: how many are alike to each.
        near_leader: from the numbers of some rows ``[B]`` and of the leaders before them ``[L]``,
            one at least, to the leader that each row follows, ``[B]``, -1 for none.
    """
    leader_F = torch.empty(len(rows_FD), dtype=torch.int64)
    leaders = torch.empty(0, dtype=torch.int64)
    for block_B in torch.split(count_F.argsort(descending=True, stable=True), BLOCK):
        found_B = near_leader(block_B, leaders) if len(leaders) else torch.full_like(block_B, -1)
        free_B = found_B < 0
        rows_BD, radius_B = rows_FD[block_B].double(), radius_F[block_B].double()
        first_B = lead_within(within(rows_BD, radius_B, rows_BD, radius_B), free_B)
        leader_F[block_B] = torch.where(free_B, block_B[first_B], found_B)
        leaders = torch.cat([leaders, block_B[torch.unique(first_B[free_B])]])
    return leader_F


def lead_within(near_BB: Tensor, free_B: Tensor) -> Tensor:
    """Whom each row of a block follows, ``[B]`` int64: in order, each that is free leads itself and
    the free ones near it. What was not free has no meaning.

    Args:
        near_BB: bool, which pairs are near-copies.
        free_B: bool, rows that follow nobody yet.

    Example:
        >>> near = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]]).bool()
        >>> lead_within(near, torch.ones(3).bool()).tolist()
        [0, 0, 2]
    """
    first_B = torch.arange(len(near_BB))
    left_B = free_B.clone()
    for i in free_B.nonzero()[:, 0].tolist():
        if left_B[i]:
            mine_B = near_BB[i] & left_B
            mine_B[i] = True
            first_B[mine_B] = i
            left_B &= ~mine_B
    return first_B


def within(a_AD: Tensor, radius_A: Tensor, b_BD: Tensor, radius_B: Tensor) -> Tensor:
    """Which pairs are near-copies, ``[A, B]`` bool: within reach of one of the two. In float64.

    Example:
        >>> x, radius = torch.tensor([[0.0], [2.0], [9.0]]).double(), torch.tensor([1.0, 3.0, 1.0])
        >>> within(x, radius, x[:1], radius[:1])[:, 0].tolist()
        [True, True, False]
    """
    squares_AB = a_AD.square().sum(1, keepdim=True) + b_BD.square().sum(1) - 2 * a_AD @ b_BD.T
    return in_reach(squares_AB, torch.maximum(radius_A[:, None], radius_B))
