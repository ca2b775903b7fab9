"""Distances to nearest neighbours, and which of them are usual: constant shapes, nothing read on
the host.

Shape suffixes: N samples, M remembered ones, G groups of rows, D feature dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pfb.density import full_precision

GROUPS = 1024  # so many tell what is usual


def to_nearest(z_ND: Tensor, rows_MD: Tensor, squares_NM: Tensor) -> Tensor:
    """Distance ``[N]`` to the row whose square is least: the product finds it, and its distance is
    taken without cancellation.
    """
    return (z_ND - rows_MD.index_select(0, squares_NM.argmin(1))).square().sum(1).sqrt()


def to_those_before(z_ND: Tensor) -> Tensor:
    """Distance ``[N]`` of each row to the nearest before it; infinite for the first. Rows that are
    not finite are nobody's neighbours.
    """
    with full_precision(z_ND.device):
        finite_N = (z_ND.isfinite() & z_ND.square().isfinite()).all(1)
        safe_ND = torch.where(finite_N[:, None], z_ND, 0.0)
        place_N = torch.arange(len(z_ND), device=z_ND.device)
        later_NN = (place_N[:, None] <= place_N) | ~finite_N
        squares_NN = torch.addmm(safe_ND.square().sum(1), safe_ND, safe_ND.T, alpha=-2.0)
        squares_NN = F.pad(squares_NN.masked_fill(later_NN, math.inf), (0, 1), value=math.inf)  # of none, too
        distance_N = to_nearest(z_ND, F.pad(safe_ND, (0, 0, 0, 1)), squares_NN)
        return torch.where(squares_NN.amin(1).isfinite(), distance_N, math.inf)


def usual_square(squares_NM: Tensor, filled: Tensor, group: int) -> Tensor:
    """What nine in ten groups of so many rows do not exceed by their least square, ``[N]``; the
    first ``filled`` of the M rows are there, the squares of the others are infinite.
    """
    if squares_NM.size(1) % group:  # padding would copy the largest tensor of all
        squares_NM = F.pad(squares_NM, (0, -squares_NM.size(1) % group), value=math.inf)
    squares_NGg = squares_NM.reshape(len(squares_NM), squares_NM.size(1) // group, group)
    there = (filled + group - 1) // group
    if squares_NGg.size(1) > GROUPS:  # evenly from all that are there, so that a longer memory takes no longer
        some_G = torch.arange(GROUPS, device=filled.device) * there.clamp_min(GROUPS) // GROUPS
        squares_NGg, there = squares_NGg.index_select(1, some_G), there.clamp_max(GROUPS)
    groups = squares_NGg.size(1)
    absent_G = torch.arange(groups, device=filled.device) >= there
    least_NG = squares_NGg.amin(2).masked_fill(absent_G, -math.inf)
    last = (there - 1).clamp_min(0)
    largest_NK = least_NG.topk(groups - (groups - 1) * 9 // 10, dim=1).values  # sorted, from the largest
    return largest_NK.index_select(1, (last - last * 9 // 10)[None])[:, 0]
