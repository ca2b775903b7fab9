"""Distances to nearest neighbours, and which of them are usual: constant shapes, nothing read on
the host.

Products of matrices find the neighbours; their distances are taken once more without cancellation.
Shape suffixes: N samples, M remembered ones, G groups of g rows, D feature dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pfb.density.kernels import full_precision

GROUPS = 1024  # so many tell what is usual
COUNTED = 1024  # groups of rows at most among which near ones are counted
COPY_AT, ALONE_AT = 0.2, 0.6  # of the usual distance: nearer is a copy all the same, farther is none
PIECE = 2048  # rows at once, so that their squares stay in a processor's cache
LARGE_PIECE = 65_536  # on other devices, where a call costs more than a cache gives
PIECES = 32  # at most
CLOSE = 0.3  # part of the distance between any two samples
LEAST_DIMENSIONS, MOST_DIMENSIONS = 8.0, 64.0  # how fast the nearest of more rows comes nearer; CIFAR-10: 5 to 8
TELLS = 64  # rows, of fewer the dimension is not told


def in_deviations(x_ND: Tensor, frame_2D: Tensor) -> Tensor:
    """From the middle, in units of the standard deviations; the frame holds it and their
    reciprocals.
    """
    return (x_ND - frame_2D[0]).mul_(frame_2D[1])


def least_squares(z_ND: Tensor, rows_MD: Tensor, frame_2D: Tensor, filled: Tensor, group: int) -> Tensor:
    """Square of the distance to the nearest row of each group of so many, less ``|z|`` squared,
    ``[N, G]``; the first ``filled`` rows are there, and a group without any is infinitely far.

    Args:
        z_ND: in deviations.
        rows_MD: as they are.
        frame_2D: what makes deviations of them, see :func:`in_deviations`.
        filled: ``[]`` int64.
        group: g.
    """
    size = rows_at_once(len(rows_MD), group, z_ND.device)
    least_NG = z_ND.new_empty(len(z_ND), -(-len(rows_MD) // group))
    with full_precision(z_ND.device):
        for first in range(0, len(rows_MD), size):
            piece_MD = in_deviations(rows_MD[first : first + size], frame_2D)
            absent_M = torch.arange(first, first + len(piece_MD), device=filled.device) >= filled
            squares_M = piece_MD.square().sum(1).masked_fill_(absent_M, math.inf)
            squares_NM = torch.addmm(squares_M, z_ND, piece_MD.T, alpha=-2.0)
            least_NG[:, first // group : (first + size) // group] = least_of_groups(squares_NM, group)
    return least_NG


def rows_at_once(rows: int, group: int, device: torch.device) -> int:
    """How many of the rows a product of matrices takes, of whole groups."""
    size = max(PIECE if device.type == "cpu" else LARGE_PIECE, -(-rows // PIECES))
    return size + -size % group


def least_of_groups(squares_NM: Tensor, group: int) -> Tensor:
    """The least of every so many columns, ``[N, G]``.

    Example:
        >>> least_of_groups(torch.tensor([[5.0, 1.0, 3.0, 2.0, 4.0]]), 2)
        tensor([[1., 2., 4.]])
    """
    if squares_NM.size(1) % group:
        squares_NM = F.pad(squares_NM, (0, -squares_NM.size(1) % group), value=math.inf)
    return squares_NM.view(len(squares_NM), squares_NM.size(1) // group, group).amin(2)


def to_nearest(z_ND: Tensor, rows_MD: Tensor, frame_2D: Tensor, filled: Tensor, least_NG: Tensor, group: int) -> Tensor:
    """Distance ``[N]`` to the nearest row, which is one of the group whose least square is the
    least; infinite if none is there. Arguments as in :func:`least_squares`.
    """
    place_Ng = least_NG.argmin(1)[:, None] * group + torch.arange(group, device=filled.device)
    rows_RD = rows_MD.index_select(0, place_Ng.clamp_max(len(rows_MD) - 1).flatten())
    near_NgD = in_deviations(rows_RD, frame_2D).view(len(z_ND), group, z_ND.size(1))
    squares_Ng = (z_ND[:, None] - near_NgD).square_().sum(2)
    return squares_Ng.masked_fill_(place_Ng >= filled, math.inf).amin(1).sqrt()


def to_those_before(z_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Distance ``[N]`` of each row to the nearest before it, infinite for the first, and the
    squares of the distances to all before it, ``[N, N + 1]``, infinite for others. Rows that are
    not finite are nobody's neighbours.
    """
    with full_precision(z_ND.device):
        finite_N = (z_ND.isfinite() & z_ND.square().isfinite()).all(1)
        safe_ND = torch.where(finite_N[:, None], z_ND, 0.0)
        place_N = torch.arange(len(z_ND), device=z_ND.device)
        later_NN = (place_N[:, None] <= place_N) | ~finite_N
        own_N = safe_ND.square().sum(1)
        squares_NN = torch.addmm(own_N, safe_ND, safe_ND.T, alpha=-2.0)
        squares_NN = F.pad(squares_NN.masked_fill(later_NN, math.inf), (0, 1), value=math.inf)  # of none, too
        nearest_ND = F.pad(safe_ND, (0, 0, 0, 1)).index_select(0, squares_NN.argmin(1))
        distance_N = (z_ND - nearest_ND).square_().sum(1).sqrt()
        distance_N = torch.where(squares_NN.amin(1).isfinite(), distance_N, math.inf)
        return distance_N, squares_NN + own_N[:, None]


def nearness(part: Tensor) -> Tensor:
    """1 where a distance is at most 0.2 of the usual one, 0 from 0.6 on, and straight in between.

    Example:
        >>> nearness(torch.tensor([0.1, 0.2, 0.4, 0.6, 3.0]))
        tensor([1.0000, 1.0000, 0.5000, 0.0000, 0.0000])
    """
    return ((ALONE_AT - part) / (ALONE_AT - COPY_AT)).clamp(0.0, 1.0)


def near_ones(squares_NC: Tensor, distance_N: Tensor, usual_N: Tensor) -> Tensor:
    """How many are near, each by its :func:`nearness`, times that of the nearest, so that many that
    are barely near do not add up to a copy, ``[N]``.

    Args:
        squares_NC: squares of the distances to those that are counted, by products of matrices: not
            exact where rows lie far out.
        distance_N: the exact distance to the nearest of all; none counts for more than it.
        usual_N: usual distance.
    """
    nearest_N = nearness(distance_N / usual_N)
    part_NC = squares_NC.clamp_min(0.0).sqrt_().div_(usual_N[:, None])
    near_NC = torch.minimum(nearness(part_NC), nearest_N[:, None])
    return torch.maximum(near_NC.sum(1), nearest_N) * nearest_N


def counted(squares_NG: Tensor) -> Tensor:
    """The least of neighbouring groups, so that there are 1,024 at most."""
    return (
        least_of_groups(squares_NG, -(-squares_NG.size(1) // COUNTED)) if squares_NG.size(1) > COUNTED else squares_NG
    )


def usual_distance(
    z_ND: Tensor, rows_MD: Tensor, frame_2D: Tensor, filled: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """What :func:`least_squares` says, ``[N, G]``, and the distance to the nearest of all rows that
    is usual around each sample, ``[N]``. Arguments as there.
    """
    least_NG = least_squares(z_ND, rows_MD, frame_2D, filled, group)
    squares_N = z_ND.square().sum(1)
    of_four_N = usual_square(least_NG, filled, group) + squares_N
    apart = 2.0 * (frame_2D[1] > 0).sum()  # mean square distance of two samples
    usual_N = torch.maximum(of_four_N, CLOSE**2 * apart.clamp_min(1.0)).sqrt()
    d = dimension(least_NG, of_four_N, squares_N, filled, group).clamp(LEAST_DIMENSIONS, MOST_DIMENSIONS)
    d = torch.where(filled >= TELLS, d, LEAST_DIMENSIONS)
    return least_NG, usual_N * (group / filled.clamp_min(group)) ** (1 / d)


def dimension(least_NG: Tensor, of_four_N: Tensor, squares_N: Tensor, filled: Tensor, group: int) -> Tensor:
    """In how many dimensions the rows seem to lie, ``[1]``: the distance that is usual to the
    nearest of g rows falls to that of 4 g as ``4 ** (-1 / d)``. The middle of all samples; infinite
    if none tells.

    Args:
        least_NG: see :func:`least_squares`.
        of_four_N: square of the distance that is usual to the nearest of g rows.
        squares_N: ``|z|`` squared, which they lack.
        filled, group: as there.

    Example:
        >>> rows = torch.rand(4096, 2)
        >>> z, frame, there = rows[:99], torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor(4096)
        >>> least, squares = least_squares(z, rows, frame, there, group=4), z.square().sum(1)
        >>> of_four = usual_square(least, there, group=4) + squares
        >>> bool((dimension(least, of_four, squares, there, group=4) - 2).abs() < 0.5)
        True
    """
    of_all_N = usual_square(least_of_groups(least_NG, 4), filled, 4 * group) + squares_N
    fall_N = F.pad(0.5 * (of_four_N / of_all_N.clamp_min(1e-30)).log(), (0, 1))  # of none, too
    return math.log(4) / median_of_positive(torch.where(fall_N.isfinite(), fall_N, 0.0))


def median_of_positive(x_D: Tensor) -> Tensor:
    """The lower median of the values above 0, ``[1]``; infinite if there is none."""
    sorted_D = torch.where(x_D > 0, x_D, math.inf).sort().values
    return sorted_D.index_select(0, ((x_D > 0).sum(0, keepdim=True) - 1).clamp_min(0) // 2)


def usual_square(least_NG: Tensor, filled: Tensor, group: int) -> Tensor:
    """What nine in ten groups of so many rows do not exceed by their least square, ``[N]``; the
    first ``filled`` of the rows are there.
    """
    there = (filled + group - 1) // group
    if least_NG.size(1) > GROUPS:  # evenly from all that are there, so that a longer memory takes no longer
        some_G = torch.arange(GROUPS, device=filled.device) * there.clamp_min(GROUPS) // GROUPS
        least_NG, there = least_NG.index_select(1, some_G), there.clamp_max(GROUPS)
    groups = least_NG.size(1)
    absent_G = torch.arange(groups, device=filled.device) >= there
    last = (there - 1).clamp_min(0)
    largest_NK = least_NG.masked_fill(absent_G, -math.inf).topk(groups - (groups - 1) * 9 // 10, dim=1).values  # sorted
    return largest_NK.index_select(1, (last - last * 9 // 10)[None])[:, 0]
