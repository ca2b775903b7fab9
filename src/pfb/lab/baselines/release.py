"""PFB as its authors' release scores samples, which differs from the paper; written from a
description of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfb.density.kernels import log_kernels
from pfb.density.moving_centers import MovingCenters


@dataclass(frozen=True)
class Release:
    """Mean of *log* kernels over the centers, Silverman's width taken as a variance, noise in units
    of the score.

    Three differences from the paper's importance (:class:`pfb.RareFirst`): the mean of logarithms
    is one Gaussian at the centers' mean and no mixture; the bandwidth h enters as variance h rather
    than h squared; and the random term is ``rterm * max |score|`` times a normal draw, so it
    follows the features' scale. The centers themselves are the paper's: the release's own update
    lets them grow without bound.

    Attributes:
        rterm: weight of the random term; the release uses 0.1.
    """

    rterm: float = 0.1

    def __call__(self, features: Tensor, density: MovingCenters) -> Tensor:
        centers, bandwidth = density.centers, density.bandwidth
        if centers is None or bandwidth is None:
            return torch.rand(len(features), device=features.device)
        score_N = log_kernels(features, centers, bandwidth.sqrt()).mean(1)
        noise_N = self.rterm * score_N.abs().max() * torch.randn_like(score_N)
        return -(score_N + noise_N)
