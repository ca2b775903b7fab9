"""Which samples of a data set are near-copies of others: their nearest neighbours, and the groups
they make.

Shape suffixes: N samples, B those of a block, F near-copies, L leaders, D feature dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from pfb.copies import index
from pfb.copies.acting import Copies, listed
from pfb.copies.groups import followed, within
from pfb.copies.reach import FEWEST, FEWEST_GROUPS, GROUPS, MOST_GROUPS, USUAL, in_deviations, in_units, reach

BLOCK = 512  # rows that are compared with all others at a time
MOST_COMPARED = 50_000  # samples of which all pairs are


@torch.no_grad()
def find_copies(
    features: Tensor,
    labels: Sequence[Hashable] | Tensor | None = None,
    *,
    own: Tensor | None = None,
    images: bool = False,
    exact: bool | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Copies:
    """Find near-copies among features ``[N, D]``: of all pairs up to 50,000 samples, above that
    with an approximate index (faiss, ``pip install torch-pfb[index]``).

    Distances are in units of the features' deviations. A near-copy lies much nearer than is usual
    around there, which is the nearest of 16 random samples (median over such groups), and nearer
    than the nearest of N would by chance. Fewer than 64 samples are copies only if they are equal.
    Rows that are not finite are nobody's copy. Of all pairs time grows with the square of N (12,000
    samples: seconds on one core), memory with N.

    Args:
        features: any device; compared on the CPU. Of images, tokens and sequences
            ``pfb.features.sketch.Sketch()(batch)`` makes them.
        labels: one of each sample; then a group keeps one sample for each of its labels.
        own: ``[N, D]``, features of a slightly changed view of each sample, as
            ``pfb.features.sketch.Sketch().own_view`` makes them: what is nearer than 0.8 of the
            distance to it is a near-copy, what is farther than 1.5 is none, unless it is in few
            dimensions near by chance. Rows that are not finite set no limit. Used where all pairs
            are compared.
        images: the features are a sketch of images, which do not lie in few dimensions or tight
            clusters, unless they are copies. Where all are copies of a few, this cannot be seen.
        exact: compare all pairs; by default up to 50,000 samples.
        on_rows: called with the number of rows done, for progress.

    Raises:
        ValueError: features not of shape ``[N, D]``, ``own`` of another, or not one label for each
            sample.
        ImportError: more than 50,000 samples, and no faiss.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(500, 12)
        >>> x[300:303] = x[7] + 0.01 * torch.randn(3, 12)
        >>> found = find_copies(x)
        >>> sorted(found.groups[0]), len(found.keep)
        ([7, 300, 301, 302], 497)
    """
    if own is not None and own.shape != features.shape:
        raise ValueError(f"`own` must have the shape of the features {tuple(features.shape)} (got {tuple(own.shape)})")
    if features.dim() != 2:
        raise ValueError(
            f"`features` must be [N, D] (got shape {tuple(features.shape)}): a sketch of images, tokens or sequences "
            "is, pfb.features.sketch.Sketch()(x)"
        )
    total = len(features)
    known = None if labels is None else listed(labels, total)
    x_ND = features.detach().float().cpu()
    place_N = (x_ND.isfinite() & x_ND.square().isfinite()).all(1).nonzero()[:, 0]
    near_N, alike_N = torch.zeros(total, dtype=torch.bool), torch.ones(total, dtype=torch.int64)
    nearest_N, far_N = torch.arange(total), torch.full((total,), math.inf)
    if len(place_N) < 2:
        return Copies(near_N, (), alike_N, nearest_N, far_N, known)
    z_ND, own_N = in_deviations(x_ND[place_N]), None
    if own is not None:
        own_ND = own.detach().float().cpu()[place_N]
        known_N = own_ND.isfinite().all(1)
        both_2ND = in_deviations(torch.cat([x_ND[place_N], own_ND.where(known_N[:, None], x_ND[place_N])]))
        z_ND = both_2ND[: len(place_N)]
        own_N = (both_2ND[len(place_N) :] - z_ND).square().sum(1).sqrt().where(known_N, torch.nan)
    if len(place_N) < FEWEST or (len(place_N) <= MOST_COMPARED if exact is None else exact):
        distance_N, neighbour_N, reach_N = _neighbours(z_ND, images, on_rows, own_N)
        if own_N is not None:  # a pair is one as soon as it is for one of the two
            reach_N = torch.maximum(reach_N, reach_N[neighbour_N])
        copies_F = (distance_N <= reach_N).nonzero()[:, 0]
        count_F, leader_F = _led(z_ND[copies_F], reach_N[copies_F])
        relative_N = in_units(distance_N, reach_N)
    else:
        neighbour_N, relative_N, copies_F, count_F, leader_F = index.search(z_ND, images, on_rows)
    near_N[place_N[copies_F]] = True
    nearest_N[place_N], far_N[place_N] = place_N[neighbour_N], relative_N
    alike_N[place_N[copies_F]] = count_F
    return Copies(near_N, _split(place_N[copies_F], leader_F), alike_N, nearest_N, far_N, known)


def _neighbours(
    z_ND: Tensor, images: bool, on_rows: Callable[[int], None], own_N: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Distance to the nearest other row, which one it is, and how far near-copies reach, ``[N]``
    each.
    """
    n = len(z_ND)
    order_N = torch.randperm(n, generator=torch.Generator().manual_seed(0))  # what is side by side is no random group
    z_ND = z_ND[order_N]
    own_N = None if own_N is None else own_N[order_N]
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
    reach_N = torch.zeros(n)
    if sizes:
        medians = {size: float(distances.median()) for size, distances in nearest_of.items()}
        reach_N = reach(medians, nearest_of[USUAL], nearest_of[1], n, apart, images, own_N)
    back_N = order_N.argsort()
    return distance_N[back_N], order_N[nearest_N[back_N]], reach_N[back_N]


def _led(rows_FD: Tensor, radius_F: Tensor) -> tuple[Tensor, Tensor]:
    """How many are alike to each, and whom each follows, ``[F]`` both."""
    rows_FD, radius_F = rows_FD.double(), radius_F.double()
    parts = torch.split(torch.arange(len(rows_FD)), BLOCK)
    counts = [within(rows_FD[part], radius_F[part], rows_FD, radius_F).sum(1) for part in parts]
    count_F = torch.cat(counts) if counts else torch.empty(0, dtype=torch.int64)

    def near_leader(block_B: Tensor, leaders: Tensor) -> Tensor:
        near_BL = within(rows_FD[block_B], radius_F[block_B], rows_FD[leaders], radius_F[leaders])
        return torch.where(near_BL.any(1), leaders[near_BL.int().argmax(1)], -1)

    return count_F, followed(rows_FD, radius_F, count_F, near_leader)


def _split(place_F: Tensor, leader_F: Tensor) -> tuple[tuple[int, ...], ...]:
    """One group for each leader that has followers, the leader first and the others ascending; the
    largest group first.
    """
    order_F = leader_F.argsort(stable=True)
    leaders, counts = torch.unique_consecutive(leader_F[order_F], return_counts=True)
    groups = []
    for leader, members in zip(place_F[leaders].tolist(), torch.split(place_F[order_F], counts.tolist()), strict=True):
        if len(members) > 1:
            groups.append((leader, *sorted(members[members != leader].tolist())))
    return tuple(sorted(groups, key=lambda group: (-len(group), min(group))))
