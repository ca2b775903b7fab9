"""Kernel density over moving centers, in log space: pure functions.

Shape suffixes: N samples, C centers, D feature dimensions. Equations are those of "Partial Forward
Blocking" (Wu et al., ICCV 2025, arXiv 2506.23674). In D = 128 dimensions a density spans hundreds
of orders of magnitude, so no function here ever exponentiates it.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

Collects = Literal["kept", "all"]
COPY = 1e-3  # standard deviations; what lies nearer is the same input


class Density(Protocol):
    """How dense the features are around each sample, among those that training has seen lately.

    Attributes:
        collects: whose features it is given after each decision: those of the kept samples, or of
            all.
        ready: whether it knows anything yet; until then all samples are equally dense.
    """

    collects: ClassVar[Collects]

    @property
    def ready(self) -> bool: ...

    def log_density(self, x: Tensor) -> Tensor:
        """``log f``, ``[N]``, of features ``[N, D]``; reads only."""

    def accumulate(self, x: Tensor) -> None:
        """Collect features for the next ``apply``."""

    def apply(self) -> None:
        """Take in what was collected on all ranks: the only method that writes."""

    def summary(self) -> dict[str, float]:
        """Numbers to log."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def silverman_bandwidth(std_D: Tensor, n: int) -> Tensor:
    """Silverman's rule of thumb: the kernel's standard deviation h in each dimension.

    ``h_d = (4 / ((D + 2) n)) ** (1 / (D + 4)) * std_d``. The paper's bandwidth *matrix* is ``H =
    diag(h ** 2)``: h is a standard deviation, H a variance. A channel without spread (``std_d =
    0``) carries no information: it does not count in D and gets h = 0, which the functions below
    leave out.

    Example:
        >>> import torch
        >>> silverman_bandwidth(torch.tensor([1.0, 2.0, 0.0]), n=100)
        tensor([0.4642, 0.9283, 0.0000])
    """
    d = (std_D > 0).sum()
    return (4.0 / ((d + 2) * n)) ** (1.0 / (d + 4)) * std_D


def log_kernels(x_ND: Tensor, centers_CD: Tensor, bandwidth_D: Tensor) -> Tensor:
    """``log K_H(x_i - c_j)`` of the normal kernel for every sample and center, ``[N, C]``, by one
    matrix product.

    Dimensions with zero bandwidth are left out of the density. A row that holds NaN or infinity
    yields NaN.
    """
    alive_D = bandwidth_D > 0
    inverse_D = torch.where(alive_D, 1.0 / torch.where(alive_D, bandwidth_D, 1.0), 0.0)
    log_volume = torch.where(alive_D, bandwidth_D, 1.0).log().sum() + 0.5 * math.log(2 * math.pi) * alive_D.sum()
    # The centers' median as origin keeps |z| small, so the expanded square loses no precision far
    # from zero, and one center far away does not move it.
    origin_D = median(centers_CD)
    z_ND = (x_ND - origin_D) * inverse_D
    c_CD = (centers_CD - origin_D) * inverse_D
    squares_NC = z_ND.square().sum(1, keepdim=True) + c_CD.square().sum(1)
    distances_NC = torch.addmm(squares_NC, z_ND, c_CD.T, alpha=-2.0).clamp_min(0.0)
    return -0.5 * distances_NC - log_volume


def log_density(x_ND: Tensor, centers_CD: Tensor, weights_C: Tensor, bandwidth_D: Tensor) -> Tensor:
    """``log f(x_i)`` with ``f(x) = sum_j (w_j / C) K_H(x - c_j)``, ``[N]``.

    Args:
        x_ND: features.
        centers_CD: the centers c_j.
        weights_C: the share w_j of all samples that went to each center; a center of weight zero
            counts for nothing.
        bandwidth_D: kernel standard deviations, see :func:`silverman_bandwidth`.

    Example:
        >>> import torch
        >>> centers = torch.tensor([[0.0], [10.0]])
        >>> x, weights = torch.tensor([[0.0], [5.0]]), torch.tensor([0.5, 0.5])
        >>> log_density(x, centers, weights, torch.tensor([1.0]))
        tensor([ -2.3052, -14.1121])
    """
    log_weights_C = weights_C.log() - math.log(centers_CD.size(0))
    return torch.logsumexp(log_kernels(x_ND, centers_CD, bandwidth_D) + log_weights_C, dim=1)


def log_importance(log_density_N: Tensor, alpha_N: Tensor) -> Tensor:
    """``log I_i`` with the paper's importance ``I_i = 1 / (f(x_i) + r_i)``, ``r_i = alpha_i * max
    f``, ``[N]``.

    The maximum runs over the batch and skips NaN, so that one broken sample does not decide for the
    others; the broken sample itself keeps a NaN importance.

    Args:
        log_density_N: log f(x_i).
        alpha_N: the random term's factors, one draw per sample (paper: uniform in [0, 0.01]).
    """
    if log_density_N.numel() == 0:
        return log_density_N
    largest = torch.where(log_density_N.isnan(), -math.inf, log_density_N).max()
    return -torch.logaddexp(log_density_N, alpha_N.log() + largest)


def full_precision(device: torch.device) -> torch.autocast:
    """Switch autocast off: a density in half precision would be noise."""
    return torch.autocast(device.type, enabled=False)


def median(x_ND: Tensor) -> Tensor:
    """The median ``[D]``, of an even number the lower one; unlike ``torch.median`` deterministic on
    every device.
    """
    middle = (len(x_ND) - 1) // 2
    return x_ND.kthvalue(middle + 1, 0).values if x_ND.device.type == "cpu" else x_ND.sort(0).values[middle]


def quantiles(log_density_N: Tensor) -> dict[str, float]:
    """Quantiles in nats of those that are finite, by name; none if there are none. Synchronises the
    device.
    """
    finite = log_density_N[log_density_N.isfinite()]
    if len(finite) == 0:
        return {}
    values = torch.quantile(finite, finite.new_tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
    return {f"log_density_{q}": v for q, v in zip(("05", "25", "50", "75", "95"), values, strict=True)}


def checked_width(x: Tensor, known: int | None) -> Tensor:
    """Features ``[N, D]`` as float32 without graph; D must be what it was, if that is known.

    Raises:
        ValueError: they are not.
    """
    if x.dim() != 2:
        raise ValueError(f"features must be [N, D] (got shape {tuple(x.shape)})")
    if known is not None and known != x.size(1):
        raise ValueError(
            f"features have {x.size(1)} dimensions, the density was built on {known}. One blocker serves one cut of "
            "one model; attach anew after changing either. Where batches differ in width (channels, frames of [N, T, "
            "C, H, W]), pass `features=`, a callable that returns [N, D] of one D."
        )
    return x.detach().float()
