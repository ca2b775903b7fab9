"""Which samples matter: the paper's rule and the uniform baseline. Any callable of the same form will do.

A criterion takes features ``[N, D]`` and returns importance ``[N]``, larger is kept. One that takes a second argument is
given the run's :class:`~pfb.DensityEstimator`, which is then maintained for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfb.density import log_importance
from pfb.estimator import DensityEstimator


@dataclass(frozen=True)
class RareFirst:
    """The paper's importance ``1 / (f(x_i) + r_i)``: samples where the shallow features are dense are redundant.

    ``r_i = alpha_i * max f`` over the batch with one draw ``alpha_i ~ U(0, alpha)`` per sample (arXiv 2506.23674).
    Returns ``log I``; draws from the global generator of the features' device.

    Attributes:
        alpha: upper end of the random term, as a share of the batch's largest density; 0 is strict rarest-first.

    Example:
        >>> import torch, pfb
        >>> estimator = pfb.DensityEstimator(n_centers=4)
        >>> estimator.accumulate(torch.randn(64, 2)); estimator.apply()
        >>> RareFirst()(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), estimator).argmax()
        tensor(1)
    """

    alpha: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"`alpha` must be a finite number >= 0 (got {self.alpha!r}); the paper uses 0.01")

    def __call__(self, features: Tensor, estimator: DensityEstimator) -> Tensor:
        log_density_N = estimator.log_density(features)
        return log_importance(log_density_N, self.alpha * torch.rand_like(log_density_N))


@dataclass(frozen=True)
class Uniform:
    """Every sample equally likely: the baseline a criterion has to beat at the same pruned share.

    Example:
        >>> import torch
        >>> Uniform()(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __call__(self, features: Tensor) -> Tensor:
        return torch.rand(features.size(0), device=features.device)
