"""Near-copies of very many samples, by an approximate index: an inverted file of faiss, which finds
the same in every run.

Shape suffixes: N samples, U distinct ones, V distinct ones that have near-copies, F near-copies, B
those of a block, R random samples, G groups of them, K nearest, D feature dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pfb.copies.groups import followed
from pfb.copies.reach import FEWEST_GROUPS, GROUPS, USUAL, in_reach, in_units, reach

BLOCK = 8192  # rows that are looked up at a time
NEIGHBOURS = 32  # found of each
LEADERS = 4  # looked at for each
LISTS = 4  # times the square root of the samples: lists of the inverted file
TRAINED, ROUNDS = 64, 8  # samples of each list by which it is placed, in so many rounds
PROBED = 16  # lists that are searched
AROUND = 256  # groups that tell what is usual around a sample
ASKED = 4096  # samples that tell it for groups of other sizes
SEED = 0


def search(z_ND: Tensor, images: bool, on_rows: Callable[[int], None]) -> tuple[Tensor, ...]:
    """Search like that of all pairs, in time about in proportion to ``N ** 1.5``.

    Args:
        z_ND: features in units of their deviations, float32.
        images: see :func:`pfb.find_copies`.
        on_rows: told how many rows are done.

    Returns:
        The nearest other sample ``[N]``; its distance in units of how far a near-copy reaches
        ``[N]``; which are near-copies ``[F]``; at least how many are alike to each of these
        ``[F]``; and which of them each follows ``[F]``, numbers of 0 to F - 1.

    Raises:
        ImportError: faiss is not installed.
    """
    faiss = _faiss()
    n = len(z_ND)
    first_U, same_N, often_U = _distinct(z_ND)
    z_UD = z_ND[first_U].contiguous()
    reach_U = _reach(z_ND, z_UD, images)
    index = _index(faiss, z_UD)
    far_U, nearest_U, count_U = torch.zeros(len(z_UD)), torch.arange(len(z_UD)), often_U.clone()
    for start in range(0, len(z_UD), BLOCK):
        block = slice(start, min(start + BLOCK, len(z_UD)))
        square_BK, found_BK = _nearest(index, z_UD[block], NEIGHBOURS + 1)
        mine_B1 = torch.arange(block.start, block.stop)[:, None]
        square_BK = square_BK.masked_fill((found_BK == mine_B1) | (found_BK < 0), math.inf)
        found_BK = found_BK.clamp_min(0)
        radius_BK = torch.maximum(reach_U[block, None], reach_U[found_BK])
        like_BK = in_reach(square_BK, radius_BK)
        count_U[block] += (often_U[found_BK] * like_BK).sum(1)
        best_B1 = square_BK.argmin(1, keepdim=True)
        nearest_U[block] = found_BK.gather(1, best_B1)[:, 0]
        far_U[block] = in_units(square_BK.gather(1, best_B1)[:, 0].sqrt(), reach_U[block])
        on_rows(min(n, round(block.stop * n / len(z_UD))))
    far_U[often_U > 1] = 0.0
    near_U = far_U <= 1
    of_V = near_U.nonzero()[:, 0]
    led_V = of_V[_led(faiss, index, z_UD[of_V], reach_U[of_V], count_U[of_V])]
    copies_F = near_U[same_N].nonzero()[:, 0]
    position_N = torch.zeros(n, dtype=torch.int64)
    position_N[copies_F] = torch.arange(len(copies_F))
    leader_U = torch.zeros(len(z_UD), dtype=torch.int64)
    leader_U[of_V] = led_V
    leader_F = position_N[first_U[leader_U[same_N[copies_F]]]]
    size_F = torch.bincount(leader_F, minlength=len(copies_F))[leader_F]
    count_F = torch.maximum(count_U[same_N[copies_F]], size_F)
    return _nearest_of_all(first_U, same_N, often_U, nearest_U), far_U[same_N], copies_F, count_F, leader_F


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "more than 50,000 samples are compared through faiss, which is not installed: pip install "
            '"torch-pfb[index]"; or pass exact=True, which takes time with the square of the samples'
        ) from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def _distinct(z_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first of all equal rows ``[U]``, which of these each row equals ``[N]``, and how many do
    ``[U]``. Equal are rows of one hash of 64 bits.
    """
    bits_ND = (z_ND + 0.0).view(torch.int32).long()  # -0.0 is 0.0
    factors_D = torch.randint(2**62, (z_ND.size(1),), generator=torch.Generator().manual_seed(SEED)) * 2 + 1
    hash_N = ((bits_ND + 2**31) * factors_D).sum(1)
    _, same_N, often_U = torch.unique(hash_N, return_inverse=True, return_counts=True)
    first_U = torch.full((len(often_U),), len(z_ND)).scatter_reduce(0, same_N, torch.arange(len(z_ND)), "amin")
    return first_U, same_N, often_U


def _nearest_of_all(first_U: Tensor, same_N: Tensor, often_U: Tensor, nearest_U: Tensor) -> Tensor:
    """The nearest other sample ``[N]``: the next of those that are equal, or the nearest of the
    distinct ones.
    """
    nearest_N = first_U[nearest_U[same_N]]
    order_N = same_N.argsort(stable=True)
    ends_U = often_U.cumsum(0)
    next_N = order_N.roll(-1)
    next_N[ends_U - 1] = order_N[ends_U - often_U]
    repeated_N = often_U[same_N[order_N]] > 1
    nearest_N[order_N[repeated_N]] = next_N[repeated_N]
    return nearest_N


def _reach(z_ND: Tensor, z_UD: Tensor, images: bool) -> Tensor:
    """Up to which distance a neighbour is a near-copy, ``[U]``, by random samples."""
    n = len(z_ND)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))
    some_RD = z_ND[order[: AROUND * max(GROUPS)]]
    asked_BD = z_ND[order[-ASKED:]]
    sizes = [size for size in GROUPS if n // size >= FEWEST_GROUPS]
    medians = {size: float(_least(asked_BD, some_RD, size).median()) for size in sizes}
    parts = [(_least(z_BD, some_RD, USUAL), _least(z_BD, some_RD, 1)) for z_BD in torch.split(z_UD, BLOCK)]
    usual_U, one_U = (torch.cat(part) for part in zip(*parts, strict=True))
    return reach(medians, usual_U, one_U, n, math.sqrt(2 * z_ND.size(1)), images)


def _least(z_BD: Tensor, some_RD: Tensor, size: int) -> Tensor:
    """Distance to the nearest of so many, the median over groups, ``[B]``."""
    some_RD = some_RD[: min(AROUND, len(some_RD) // size) * size]
    squares_R = some_RD.square().sum(1)
    found = []
    for rows_BD in torch.split(z_BD, 512):
        squares_BR = torch.addmm(squares_R, rows_BD, some_RD.T, alpha=-2.0)
        least_B = squares_BR.view(len(rows_BD), -1, size).amin(2).median(1).values
        found.append((least_B + rows_BD.square().sum(1)).clamp_min(0.0).sqrt())
    return torch.cat(found)


def _index(faiss: Any, z_UD: Tensor) -> Any:
    """An inverted file that holds all rows."""
    u, d = z_UD.shape
    lists = max(1, min(round(LISTS * u**0.5), u // TRAINED))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, lists)
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = ROUNDS, TRAINED, 1
    index.cp.seed, index.nprobe = SEED + 1, PROBED
    index.train(z_UD.numpy())
    index.add(z_UD.numpy())
    return index


def _nearest(index: Any, z_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances and numbers of the k nearest rows, ``[B, K]``; -1 where there are fewer."""
    squares, found = index.search(z_BD.contiguous().numpy(), k)
    return torch.from_numpy(squares), torch.from_numpy(found)


def _led(faiss: Any, index: Any, z_VD: Tensor, reach_V: Tensor, count_V: Tensor) -> Tensor:
    """Whom each follows, ``[V]``, of the nearest leaders."""
    of_leaders = faiss.IndexIVFFlat(index.quantizer, z_VD.size(1), index.nlist)
    of_leaders.nprobe = PROBED

    def near_leader(block_B: Tensor, leaders: Tensor) -> Tensor:
        if len(new_L := leaders[of_leaders.ntotal :]):
            of_leaders.add(z_VD[new_L].numpy())
        square_BK, found_BK = _nearest(of_leaders, z_VD[block_B], LEADERS)
        led_BK = leaders[found_BK.clamp_min(0)]
        radius_BK = torch.maximum(reach_V[block_B, None], reach_V[led_BK])
        like_BK = in_reach(square_BK, radius_BK) & (found_BK >= 0)
        nearest_B = led_BK.gather(1, like_BK.int().argmax(1, keepdim=True))[:, 0]
        return torch.where(like_BK.any(1), nearest_B, -1)

    return followed(z_VD, reach_V, count_V, near_leader)
