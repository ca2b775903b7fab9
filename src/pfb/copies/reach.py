"""How near a near-copy lies: in units of the features' deviations, in parts of what is usual.

Shape suffixes: N samples, L some of them, D feature dimensions.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from pfb.density.centers import DEAD_CHANNEL, spread_of, within_reach
from pfb.density.kernels import median

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
MANY, NEAR_IN_MANY = 24.0, 0.58  # ... in so many, as of text: of 40 tokens four may differ
CLOSE, CLOSE_IMAGES = 0.15, 0.3  # the usual distance is at least so much of that of any two samples
IMAGE_DIMENSIONS = 5.0  # which images fill, other than vectors: CIFAR-10 7, digits 6
# In few dimensions the nearest of many is near by chance: so many samples may be taken for copies
# where there are none.
BY_CHANCE = 0.002
ANY = 0.5  # of the mean distance: what any other sample has, where one scene is most of all
# Of the distance to its own slightly changed view: nearer is a near-copy whatever is usual, farther
# is none. Frames of CIFAR-10 clips lie at 0.03 to 0.55 of it, pairs of frames at up to 1.1,
# different images at 0.64 to 6.
WITHIN_OWN = 0.8, 1.5
NEAR_BY_OWN = 0.35  # of the usual distance, at most: of images whose view is very different


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


def reach(
    medians: dict[int, float],
    usual_N: Tensor,
    one_N: Tensor,
    n: int,
    apart: float,
    images: bool,
    own_N: Tensor | None = None,
) -> Tensor:
    """Up to which distance a neighbour is a near-copy, ``[N]``.

    Of n samples that fill d dimensions evenly, the nearest lies at ``(g / n) ** (1 / d)`` of the
    distance to the nearest of g, and nearer than c times that with probability ``c ** d``.

    Args:
        medians: distance to the nearest of so many random samples, the median of all samples.
        usual_N: that of each sample to the nearest of 16.
        one_N: to a single one.
        n: samples.
        apart: mean distance of two.
        images: see :func:`pfb.find_copies`.
        own_N: of each sample to a slightly changed view of itself.
    """
    sizes = sorted(medians)
    # Where groups begin to hold copies, distances fall as in few dimensions; so the most count.
    found = [
        math.log(h / g) / math.log(max(1.02, medians[g] / max(medians[h], 1e-30))) for g, h in itertools.pairwise(sizes)
    ]
    d = max(IMAGE_DIMENSIONS if images else 1.0, *found)
    part = max(NEAR, (NEAR_OF_EXPECTED if d < MANY else NEAR_IN_MANY) * (USUAL / n) ** (1 / d))
    by_chance = (BY_CHANCE / n) ** (1 / d)
    near_N = part * usual_N.clamp_min((CLOSE_IMAGES if images else CLOSE) * apart)
    if own_N is not None:
        within_N = torch.maximum(torch.minimum(near_N, WITHIN_OWN[1] * own_N), WITHIN_OWN[0] * own_N)
        near_N = torch.where(own_N.isfinite(), within_N, near_N)
    reach_N = torch.minimum(near_N, by_chance * one_N.clamp_min(ANY * apart))
    if images and own_N is not None:  # large groups look like few dimensions, which images do not lie in
        least_N = torch.minimum(WITHIN_OWN[0] * own_N, NEAR_BY_OWN * usual_N)
        reach_N = torch.where(own_N.isfinite(), torch.maximum(reach_N, least_N), reach_N)
    return reach_N


def in_units(distance: Tensor, reach: Tensor) -> Tensor:
    """Distances in units of how far a near-copy reaches; 0 between equal samples."""
    return torch.where(distance == 0, 0.0, distance / reach)


def in_reach(square: Tensor, radius: Tensor) -> Tensor:
    """Whether a squared distance is within a radius, computed in another order of sums."""
    return square <= radius.square() * 1.0001 + 1e-9
