"""Sampling by density instead of a hard rule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pfb.density.moving_centers import DensityEstimator


@dataclass(frozen=True)
class Tempered:
    """Sampling by density instead of a hard rule: without replacement, with weights ``exp(-gamma *
    z_i)``.

    ``z_i`` is the batch's log density in units of its standard deviation, so ``gamma`` means the
    same at every cut and dimension. 0 is :class:`Uniform`, large is strict rarest-first, negative
    favours dense samples. The draw is that of Gumbel noise on the log weights (Kool et al., 2019,
    arXiv 1903.06059). Returns the perturbed log weights.

    Attributes:
        gamma: how strongly density decides; 0.5 is mild.

    Example:
        >>> import torch, pfb
        >>> estimator = pfb.DensityEstimator(n_centers=4)
        >>> estimator.accumulate(torch.randn(64, 2)); estimator.apply()
        >>> x = torch.tensor([[0.0, 0.0], [9.0, 9.0], [0.1, 0.0]])
        >>> Tempered(gamma=50.0)(x, estimator).argmax()
        tensor(1)
    """

    gamma: float = 0.5

    def __post_init__(self) -> None:
        if not math.isfinite(self.gamma):
            raise ValueError(f"`gamma` must be a finite number (got {self.gamma!r}); 0.5 is mild, 0 is uniform")

    def __call__(self, features: Tensor, estimator: DensityEstimator) -> Tensor:
        log_density_N = estimator.log_density(features)
        known_N = log_density_N.isfinite()
        n = known_N.sum().clamp_min(1)
        centered_N = torch.where(known_N, log_density_N - torch.where(known_N, log_density_N, 0.0).sum() / n, 0.0)
        spread = (centered_N.square().sum() / n).sqrt()
        z_N = torch.where(spread > 0, centered_N / spread, 0.0)
        return -self.gamma * z_N + gumbel(log_density_N)


def gumbel(like: Tensor) -> Tensor:
    """Independent draws of the standard Gumbel distribution, one per element."""
    return -torch.empty_like(like).exponential_().log()
