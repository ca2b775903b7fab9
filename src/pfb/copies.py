"""Which samples of a data set are near-copies of others: exact nearest neighbours, and the groups
they make.

Shape suffixes: N samples, B those of a block, F near-copies, D feature dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pfb.centers import DEAD_CHANNEL, spread_of, within_reach
from pfb.density import median

BLOCK = 512  # rows that are compared with all others at a time
GROUP = 64  # rows whose nearest is the usual neighbour, as in `pfb.NeighbourMemory.isolation`
CLOSE = 0.1  # part of the distance between any two samples
LOOK = 1024  # rows that tell where the middle is
FEWEST = 64  # samples; of fewer nothing is known but whether two are equal

# What makes a copy, found on data whose answer is known and then left alone. Distance to the
# nearest in parts of the usual one, of 12,000 samples (digits 1,437): frames of CIFAR-10 clips
# (moved by a pixel, lighter, noise) 0.03 (median) to 0.10 (99 %), the same randomly cropped and
# mirrored 0.12 to 0.34; distinct images of CIFAR-10 0.58, of which 33 are below 0.2, nearly all of
# them pictures that do occur twice; digits 0.39 (1 %), random tokens 0.90 (0.1 %). Pieces of
# English text below 0.3 say the same, moved by a few letters.
NEAR = 0.2
NEAR_OF_EXPECTED = 0.35
# In few dimensions the nearest of many is near by chance: so many samples may be taken for copies
# where there are none.
BY_CHANCE = 0.003


@dataclass(frozen=True)
class Copies:
    """What :func:`find_copies` found among N samples.

    Attributes:
        near: ``[N]`` bool, whether another sample is a near-copy of it.
        groups: indices of samples that are near-copies of the first in each group, which is the
            most central one and the one to keep; the others ascending, the largest group first. No
            sample is in two.
        alike: ``[N]`` int64, how many samples are near-copies of each, itself included.
        nearest: ``[N]`` int64, the nearest other sample.
        isolation: ``[N]`` float32, distance to it in parts of the usual one around there; near 0
            for a copy.
        threshold: below this isolation a sample is a near-copy.
    """

    near: Tensor
    groups: tuple[tuple[int, ...], ...]
    alike: Tensor
    nearest: Tensor
    isolation: Tensor
    threshold: float

    @property
    def spare(self) -> int:
        """Samples that could go if one of each group stayed."""
        return sum(len(group) - 1 for group in self.groups)


@torch.no_grad()
def find_copies(features: Tensor, on_rows: Callable[[int], None] = lambda rows: None) -> Copies:
    """Find near-copies among features ``[N, D]``, of all pairs, in blocks: memory grows with N,
    time with its square (12,000 samples: seconds on one core).

    Distances are in units of the features' deviations. A near-copy lies much nearer than is usual
    around there: than the nearest of 64 random samples (median over such groups; of few samples
    smaller groups), and than the nearest of N would by chance. Fewer than 64 samples are copies
    only if they are equal. Rows that are not finite are nobody's copy.

    Args:
        features: any device; compared on the CPU.
        on_rows: called with the number of rows done, for progress.

    Raises:
        ValueError: not of shape ``[N, D]``.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(500, 12)
        >>> x[300:303] = x[7] + 0.01 * torch.randn(3, 12)
        >>> found = find_copies(x)
        >>> sorted(found.groups[0]), found.spare
        ([7, 300, 301, 302], 3)
    """
    if features.dim() != 2:
        raise ValueError(f"`features` must be [N, D] (got shape {tuple(features.shape)})")
    x_ND = features.detach().float().cpu()
    finite_N = (x_ND.isfinite() & x_ND.square().isfinite()).all(1)
    place_N = finite_N.nonzero()[:, 0]
    n, total = len(place_N), len(x_ND)
    isolation_N, nearest_N = torch.full((total,), math.inf), torch.arange(total)
    alike_N = torch.ones(total, dtype=torch.int64)
    if n < 2:
        return Copies(torch.zeros(total, dtype=torch.bool), (), alike_N, nearest_N, isolation_N, 0.0)
    z_ND = in_deviations(x_ND[place_N])
    apart = _neighbours(z_ND, on_rows)
    radius = threshold(apart, n)
    isolation = apart.distance / apart.usual
    isolation_N[place_N], nearest_N[place_N] = isolation, place_N[apart.nearest]
    near_N = torch.zeros(total, dtype=torch.bool)
    near_N[place_N] = isolation <= radius
    copies_F = (isolation <= radius).nonzero()[:, 0]
    count_F, grouped = _groups(z_ND, copies_F, radius * apart.usual)
    alike_N[place_N[copies_F]] = count_F
    groups = [(int(place_N[first]), *sorted(place_N[rest].tolist())) for first, rest in grouped]
    groups.sort(key=lambda group: (-len(group), min(group)))
    return Copies(near_N, tuple(groups), alike_N, nearest_N, isolation_N, radius)


def in_deviations(x_ND: Tensor) -> Tensor:
    """Features in units of their deviations, around their middle, ``[N, D]``; dimensions without
    spread are left out. A far row does not change the units of the others.
    """
    some_LD = x_ND[torch.linspace(0, len(x_ND) - 1, min(LOOK, len(x_ND))).long()]
    middle_D = median(some_LD)
    near_ND = within_reach(x_ND - middle_D, spread_of(some_LD - middle_D))
    std_D = near_ND.std(0, correction=0)
    alive_D = std_D > DEAD_CHANNEL * std_D.max()
    if not alive_D.any():
        return x_ND.new_zeros(len(x_ND), 1)
    return ((x_ND - middle_D) / torch.where(alive_D, std_D, 1.0))[:, alive_D]


@dataclass(frozen=True)
class Neighbours:
    """Distance to the nearest other row, which one it is, and what is usual, ``[N]`` each; and how
    many dimensions the rows fill, which tells how near the nearest of many is by chance.
    """

    distance: Tensor
    nearest: Tensor
    usual: Tensor
    dimensions: float


def threshold(found: Neighbours, n: int) -> float:
    """Below which part of the usual distance a neighbour is a copy.

    Of n samples that fill d dimensions evenly, the nearest lies at ``(g / n) ** (1 / d)`` of the
    distance to the nearest of g, and nearer than c times that with probability ``c ** d``.
    """
    if n < FEWEST:
        return 0.0
    g, d = _group(n), found.dimensions
    expected = (g / n) ** (1 / d)
    return float(min(max(NEAR, NEAR_OF_EXPECTED * expected), (BY_CHANCE * g / n) ** (1 / d)))


def _group(n: int) -> int:
    return max(2, min(GROUP, n // 8))


def _neighbours(z_ND: Tensor, on_rows: Callable[[int], None]) -> Neighbours:
    n = len(z_ND)
    order_N = torch.randperm(n, generator=torch.Generator().manual_seed(0))  # neighbours in the data are none in groups
    z_ND = z_ND[order_N]
    squares_N = z_ND.square().sum(1)
    distance_N, nearest_N, usual_N, few_N = (torch.empty(n) for _ in range(4))
    nearest_N = torch.empty(n, dtype=torch.int64)
    group = _group(n)
    for start in range(0, n, BLOCK):
        rows = slice(start, min(n, start + BLOCK))
        squares_BN = torch.addmm(squares_N, z_ND[rows], z_ND.T, alpha=-2.0)
        squares_BN[torch.arange(len(squares_BN)), torch.arange(rows.start, rows.stop)] = math.inf
        nearest_N[rows] = nearest = squares_BN.argmin(1)
        # The product finds the neighbour; its distance is taken without cancellation.
        distance_N[rows] = (z_ND[rows] - z_ND[nearest]).square().sum(1).sqrt()
        usual_N[rows] = _usual(squares_BN, group) + squares_N[rows]
        few_N[rows] = _usual(squares_BN, max(1, group // 4)) + squares_N[rows]
        on_rows(rows.stop)
    usual_N, few_N = usual_N.clamp_min(0.0).sqrt(), few_N.clamp_min(0.0).sqrt()
    ratio = float(few_N.median() / usual_N.median().clamp_min(1e-30))
    dimensions = math.log(group / max(1, group // 4)) / math.log(max(ratio, 1.01))
    usual_N = usual_N.clamp_min(CLOSE * math.sqrt(2 * z_ND.size(1)))  # of two samples: the root of 2 D
    back_N = order_N.argsort()
    return Neighbours(distance_N[back_N], order_N[nearest_N[back_N]], usual_N[back_N], dimensions)


def _usual(squares_BN: Tensor, group: int) -> Tensor:
    """The square of each row to the nearest in a group of others, the median over groups."""
    whole = squares_BN.size(1) // group * group
    return squares_BN[:, :whole].view(len(squares_BN), -1, group).amin(2).median(1).values


def _groups(z_ND: Tensor, copies_F: Tensor, radius_N: Tensor) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """How many are alike to each, ``[F]``; and leaders with their followers: rows in the order of
    these numbers, each follows the first leader within reach, or else leads. So what is near-copy of
    a near-copy does not chain on.
    """
    rows_FD, radius_F = z_ND[copies_F].double(), radius_N[copies_F].double()
    parts = torch.split(torch.arange(len(rows_FD)), BLOCK)
    counts = [_within(rows_FD[part], radius_F[part], rows_FD, radius_F).sum(1) for part in parts]
    count_F = torch.cat(counts)
    order_F = count_F.argsort(descending=True, stable=True)
    leaders = torch.empty(0, dtype=torch.int64)
    leader_F = torch.empty(len(rows_FD), dtype=torch.int64)
    for block_B in torch.split(order_F, BLOCK):
        rows_BD, radius_B = rows_FD[block_B], radius_F[block_B]
        free_B = torch.ones(len(block_B), dtype=torch.bool)
        if len(leaders):
            near_BL = _within(rows_BD, radius_B, rows_FD[leaders], radius_F[leaders])
            follows_B = near_BL.any(1)
            leader_F[block_B[follows_B]] = leaders[near_BL[follows_B].int().argmax(1)]
            free_B &= ~follows_B
        near_BB = _within(rows_BD, radius_B, rows_BD, radius_B)
        for i in free_B.nonzero()[:, 0].tolist():
            if free_B[i]:
                mine_B = (near_BB[i] & free_B).index_fill(0, torch.tensor(i), True)
                leader_F[block_B[mine_B]] = block_B[i]
                free_B &= ~mine_B
                leaders = torch.cat([leaders, block_B[i : i + 1]])
    return count_F, _split(copies_F, leader_F)


def _within(a_AD: Tensor, radius_A: Tensor, b_BD: Tensor, radius_B: Tensor) -> Tensor:
    """Which pairs are near-copies, ``[A, B]`` bool: within reach of one of the two."""
    squares_AB = a_AD.square().sum(1, keepdim=True) + b_BD.square().sum(1) - 2 * a_AD @ b_BD.T
    return squares_AB <= torch.maximum(radius_A[:, None], radius_B).square() + 1e-9


def _split(copies_F: Tensor, leader_F: Tensor) -> list[tuple[int, Tensor]]:
    """One entry for each leader that has followers."""
    order_F = leader_F.argsort(stable=True)
    leaders, counts = torch.unique_consecutive(leader_F[order_F], return_counts=True)
    found = []
    for leader, members in zip(leaders.tolist(), torch.split(order_F, counts.tolist()), strict=True):
        if len(members) > 1:
            found.append((int(copies_F[leader]), copies_F[members[members != leader]]))
    return found
