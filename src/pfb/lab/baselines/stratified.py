"""Uniform blocking with every region of feature space represented."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pfb.density.moving_centers import DensityEstimator

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Stratified:
    """Every sample equally likely, and every region of feature space represented: uniform with less
    variance.

    Samples are lined up by their nearest center, in random order within it, and a low-discrepancy
    sequence with a random start (the multiples of the golden ratio) is laid over the line. So of
    each region the share that goes on is nearly that of the whole batch, where :class:`Uniform`
    leaves it to chance.

    Example:
        >>> import torch, pfb
        >>> x = torch.cat([torch.zeros(50, 1), torch.full((50, 1), 9.0)])
        >>> estimator = pfb.DensityEstimator(n_centers=2)
        >>> estimator.accumulate(torch.tensor([[0.0], [9.0]])); estimator.apply()
        >>> kept = Stratified()(x, estimator).topk(20).indices
        >>> 9 <= int((kept < 50).sum()) <= 11
        True
    """

    def __call__(self, features: Tensor, estimator: DensityEstimator) -> Tensor:
        n, device = features.size(0), features.device
        within = torch.rand(n, device=device)
        region = torch.zeros_like(within) if not estimator.ready else estimator.nearest(features)
        place = torch.argsort(region + within).argsort()
        return (place * GOLDEN_RATIO + torch.rand((), device=device)) % 1
