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

from pfb.density.centers import DEAD_CHANNEL, spread_of, within_reach
from pfb.density.kernels import median

BLOCK = 512  # rows that are compared with all others at a time
GROUPS = (1, 4, 16, 64)  # rows whose nearest tells how distances grow
USUAL = 16  # ... and of which is the usual one: of more, one might be a copy, where few scenes are all
FEWEST_GROUPS, MOST_GROUPS = 4, 512
LOOK = 1024  # rows that tell where the middle is
FEWEST = 64  # samples; of fewer nothing is known but whether two are equal

# What makes a copy, found on data whose answer is known and then left alone. Near-copies: of frames
# of CIFAR-10 clips (moved by a pixel, lighter or darker, noise) all, from 5 clips alone to 200
# among 4,000 single images (of 2 clips 55 to 87 %), and 81 to 85 % if they are cropped and mirrored
# at random; of pieces of English text that occur 20 times all, with 2 % of their letters changed
# 63 %. Where there are none: of 12,000 images of CIFAR-10 0.4 %, which are pictures that do occur
# twice; of digits 0.3 %; of Gaussian vectors of 1 to 48 dimensions at most 2 %; of random tokens
# and sequences none. Not told apart: Gaussian clusters that are 10 to 20 times narrower than all
# together (4 to 77 %).
NEAR = 0.165  # of the usual distance
NEAR_OF_EXPECTED = 0.35  # of that of the nearest of all, in many dimensions
MANY, NEAR_IN_MANY = 24.0, 0.58  # ... in so many, as of text: of 40 tokens four may differ from a common original
CLOSE, CLOSE_IMAGES = 0.15, 0.3  # the usual distance is at least so much of that of any two samples
IMAGE_DIMENSIONS = 5.0  # which images fill, other than vectors: CIFAR-10 7, digits 6
# In few dimensions the nearest of many is near by chance: so many samples may be taken for copies
# where there are none.
BY_CHANCE = 0.002
ANY = 0.5  # of the mean distance: what any other sample has, where one scene is most of all


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
        isolation: ``[N]`` float32, distance to it in parts of what counts as near around there: at
            most 1 for a near-copy.
    """

    near: Tensor
    groups: tuple[tuple[int, ...], ...]
    alike: Tensor
    nearest: Tensor
    isolation: Tensor

    @property
    def spare(self) -> int:
        """Samples that could go if one of each group stayed."""
        return sum(len(group) - 1 for group in self.groups)


@torch.no_grad()
def find_copies(features: Tensor, images: bool = False, on_rows: Callable[[int], None] = lambda rows: None) -> Copies:
    """Find near-copies among features ``[N, D]``, of all pairs, in blocks: memory grows with N,
    time with its square (12,000 samples: seconds on one core).

    Distances are in units of the features' deviations. A near-copy lies much nearer than is usual
    around there, which is the nearest of 16 random samples (median over such groups), and nearer
    than the nearest of N would by chance. Fewer than 64 samples are copies only if they are equal.
    Rows that are not finite are nobody's copy.

    Args:
        features: any device; compared on the CPU.
        images: the features are a sketch of images, which do not lie in few dimensions or tight
            clusters, unless they are copies. Where all are copies of a few, this cannot be seen.
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
    place_N = (x_ND.isfinite() & x_ND.square().isfinite()).all(1).nonzero()[:, 0]
    total = len(x_ND)
    near_N, alike_N = torch.zeros(total, dtype=torch.bool), torch.ones(total, dtype=torch.int64)
    isolation_N, nearest_N = torch.full((total,), math.inf), torch.arange(total)
    if len(place_N) < 2:
        return Copies(near_N, (), alike_N, nearest_N, isolation_N)
    z_ND = in_deviations(x_ND[place_N])
    distance_N, neighbour_N, reach_N = _neighbours(z_ND, images, on_rows)
    copies_F = (distance_N <= reach_N).nonzero()[:, 0]
    near_N[place_N[copies_F]] = True
    nearest_N[place_N] = place_N[neighbour_N]
    isolation_N[place_N] = distance_N / reach_N.clamp_min(1e-30)
    if len(copies_F) == 0:
        return Copies(near_N, (), alike_N, nearest_N, isolation_N)
    alike_N[place_N[copies_F]], grouped = _groups(z_ND, copies_F, reach_N)
    groups = [(int(place_N[first]), *sorted(place_N[rest].tolist())) for first, rest in grouped]
    groups.sort(key=lambda group: (-len(group), min(group)))
    return Copies(near_N, tuple(groups), alike_N, nearest_N, isolation_N)


def in_deviations(x_ND: Tensor) -> Tensor:
    """Features in units of their deviations, around their middle, ``[N, D]``; dimensions without
    spread are left out. A far row does not change the units of the others.
    """
    some_LD = x_ND[torch.linspace(0, len(x_ND) - 1, min(LOOK, len(x_ND))).long()]
    middle_D = median(some_LD)
    near_ND = within_reach(x_ND - middle_D, spread_of(some_LD - middle_D))
    std_D = near_ND.std(0, correction=0)
    if not (std_D > 0).any():
        return x_ND.new_zeros(len(x_ND), 1)
    alive_D = std_D > DEAD_CHANNEL * std_D[std_D > 0].median()  # of the widest, one far row might be all
    return ((x_ND - middle_D) / torch.where(alive_D, std_D, 1.0))[:, alive_D]


def reach(nearest_of: dict[int, Tensor], n: int, apart: float, images: bool) -> Tensor:
    """Up to which distance a neighbour is a near-copy, ``[N]``.

    Of n samples that fill d dimensions evenly, the nearest lies at ``(g / n) ** (1 / d)`` of the
    distance to the nearest of g, and nearer than c times that with probability ``c ** d``.

    Args:
        nearest_of: distance ``[N]`` to the nearest of so many random samples.
        n: samples.
        apart: mean distance of two.
        images: see :func:`find_copies`.
    """
    sizes = sorted(nearest_of)
    medians = [float(nearest_of[size].median()) for size in sizes]
    # Where groups begin to hold copies, distances fall as in few dimensions; so the most count.
    steps = zip(sizes, sizes[1:], medians, medians[1:], strict=False)
    found = [math.log(h / g) / math.log(max(1.02, far / max(near, 1e-30))) for g, h, far, near in steps]
    d = max(IMAGE_DIMENSIONS if images else 1.0, *found)
    part = max(NEAR, (NEAR_OF_EXPECTED if d < MANY else NEAR_IN_MANY) * (USUAL / n) ** (1 / d))
    by_chance = (BY_CHANCE / n) ** (1 / d)
    return torch.minimum(
        part * nearest_of[USUAL].clamp_min((CLOSE_IMAGES if images else CLOSE) * apart),
        by_chance * nearest_of[1].clamp_min(ANY * apart),
    )


def _neighbours(z_ND: Tensor, images: bool, on_rows: Callable[[int], None]) -> tuple[Tensor, Tensor, Tensor]:
    """Distance to the nearest other row, which one it is, and how far near-copies reach, ``[N]``
    each.
    """
    n = len(z_ND)
    order_N = torch.randperm(n, generator=torch.Generator().manual_seed(0))  # what is side by side is no random group
    z_ND = z_ND[order_N]
    squares_N = z_ND.square().sum(1)
    sizes = [size for size in GROUPS if n // size >= FEWEST_GROUPS] if n >= FEWEST else []
    distance_N, nearest_N = torch.empty(n), torch.empty(n, dtype=torch.int64)
    nearest_of = {size: torch.empty(n) for size in sizes}
    for start in range(0, n, BLOCK):
        rows = slice(start, min(n, start + BLOCK))
        squares_BN = torch.addmm(squares_N, z_ND[rows], z_ND.T, alpha=-2.0)
        squares_BN[torch.arange(len(squares_BN)), torch.arange(rows.start, rows.stop)] = math.inf
        nearest_N[rows] = nearest = squares_BN.argmin(1)
        # The product finds the neighbour; its distance is taken without cancellation.
        distance_N[rows] = (z_ND[rows] - z_ND[nearest]).square().sum(1).sqrt()
        for size in sizes:
            used = min(n // size, MOST_GROUPS) * size
            least_BG = squares_BN[:, :used].view(len(squares_BN), -1, size).amin(2)
            nearest_of[size][rows] = (least_BG.median(1).values + squares_N[rows]).clamp_min(0.0).sqrt()
        on_rows(rows.stop)
    apart = math.sqrt(2 * z_ND.size(1))
    reach_N = reach(nearest_of, n, apart, images) if sizes else torch.zeros(n)
    back_N = order_N.argsort()
    return distance_N[back_N], order_N[nearest_N[back_N]], reach_N[back_N]


def _groups(z_ND: Tensor, copies_F: Tensor, radius_N: Tensor) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """How many are alike to each, ``[F]``; and leaders with their followers: rows in the order of
    these numbers, each follows the first leader within reach, or else leads. So near-copies of
    near-copies do not chain on.
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
    return squares_AB <= torch.maximum(radius_A[:, None], radius_B).square() * 1.0001 + 1e-9  # rounded differently


def _split(copies_F: Tensor, leader_F: Tensor) -> list[tuple[int, Tensor]]:
    """One entry for each leader that has followers."""
    order_F = leader_F.argsort(stable=True)
    leaders, counts = torch.unique_consecutive(leader_F[order_F], return_counts=True)
    found = []
    for leader, members in zip(leaders.tolist(), torch.split(order_F, counts.tolist()), strict=True):
        if len(members) > 1:
            found.append((int(copies_F[leader]), copies_F[members[members != leader]]))
    return found
