"""The moving centers themselves: what stands for all features that training has seen lately.

Shape suffixes: N samples, C centers, D feature dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfb.density.kernels import log_density, log_kernels, median, silverman_bandwidth

DEAD_CHANNEL = 1e-5  # a channel whose spread is below this part of the widest one carries no information
FAR = 10.0  # standard deviations; what lies further out moves centers and variance as if it lay there


@dataclass
class Centers:
    """Centers, their weights, and the statistics from which the bandwidth comes.

    Attributes:
        centers: ``[C, D]`` float32.
        counts: ``[C]`` int64, samples that went to each center so far, itself included.
        mean, variance: ``[D]`` float32, of the features.
        pending: ``[C * D + C + D + 1]`` float32, what was collected since the last move, in one
            flat buffer so that ranks talk once: sums of deviations from the mean ``[C, D]``, counts
            ``[C]``, squares ``[D]``, and the number of the step they belong to.
    """

    centers: Tensor
    counts: Tensor
    mean: Tensor
    variance: Tensor
    pending: Tensor

    @classmethod
    def at(cls, rows_CD: Tensor) -> Centers:
        """One center on each row. A far row does not widen the bandwidth of the others."""
        c, d = rows_CD.shape
        median_D = median(rows_CD)
        deviation_CD = rows_CD - median_D
        near_CD = median_D + within_reach(deviation_CD, spread_of(deviation_CD))
        return cls(
            rows_CD.clone(),
            torch.ones(c, dtype=torch.int64, device=rows_CD.device),
            near_CD.mean(0),
            near_CD.var(0, correction=0),
            rows_CD.new_zeros(c * d + c + d + 1),
        )

    @property
    def bandwidth(self) -> Tensor:
        """``[D]``: kernel standard deviations by Silverman's rule over the C kernels; 0 for a dead
        channel.
        """
        std_D = self.variance.sqrt()
        alive_D = torch.where(std_D > DEAD_CHANNEL * std_D.max(), std_D, 0.0)
        return silverman_bandwidth(alive_D, len(self.centers))

    def log_density(self, x_ND: Tensor) -> Tensor:
        """``log f(x_i)``, ``[N]``."""
        weights_C = self.counts / self.counts.sum()
        return log_density(x_ND, self.centers, weights_C.float(), self.bandwidth)

    def nearest(self, x_ND: Tensor) -> Tensor:
        """Index ``[N]`` of the nearest center, in the kernel's metric."""
        return log_kernels(x_ND, self.centers, self.bandwidth).argmax(1)

    def collect(self, x_ND: Tensor) -> None:
        """Add features to what is pending; those that are not finite, or whose square is not, are
        left out.
        """
        sums_CD, counts_C, squares_D, _ = self.parts()
        deviation_ND = within_reach(x_ND - self.mean, self.variance.sqrt())
        finite_N = (x_ND.isfinite() & deviation_ND.square().isfinite()).all(1)
        deviation_ND = torch.where(finite_N[:, None], deviation_ND, 0.0)
        # A product with the assignment matrix: unlike scattered addition it is deterministic on
        # every device.
        went_to_NC = self.nearest(x_ND)[:, None] == torch.arange(len(counts_C), device=x_ND.device)
        went_to_NC = (went_to_NC & finite_N[:, None]).float()
        sums_CD.add_(went_to_NC.T @ deviation_ND)
        counts_C.add_(went_to_NC.sum(0))
        squares_D.add_(deviation_ND.square().sum(0))

    def move(self, beta: float, rate: float) -> None:
        """Move by what is pending: centers at rate ``beta``, mean and variance at ``rate``."""
        sums_CD, counts_C, squares_D, _ = self.parts()
        n = counts_C.sum().clamp_min(1.0)
        means_CD = self.mean + sums_CD / counts_C.clamp_min(1.0)[:, None]
        moved_CD = torch.lerp(self.centers, means_CD, beta)
        shift_D = rate * sums_CD.sum(0) / n
        variance_D = torch.lerp(self.variance, squares_D / n, rate) - shift_D.square()
        seen_any = counts_C.sum() > 0
        self.centers.copy_(torch.where(counts_C[:, None] > 0, moved_CD, self.centers))
        self.counts.add_(counts_C.to(torch.int64))
        self.variance.copy_(torch.where(seen_any, variance_D.clamp_min(0.0), self.variance))
        self.mean.add_(shift_D)
        self.pending.zero_()

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views into the pending buffer: sums, counts, squares, step number."""
        c, d = self.centers.shape
        sums, counts, squares, step = torch.split(self.pending, [c * d, c, d, 1])
        return sums.view(c, d), counts, squares, step

    def to(self, device: torch.device) -> Centers:
        """The same on another device."""
        return Centers(**{name: value.to(device) for name, value in vars(self).items()})


def spread_of(deviation_ND: Tensor) -> Tensor:
    """Standard deviation ``[D]`` by the median of deviations from the middle, which far rows do not
    change.
    """
    return 1.4826 * median(deviation_ND.abs())  # of a normal distribution, its sigma


def within_reach(deviation_ND: Tensor, std_D: Tensor) -> Tensor:
    """Deviations cut off at :data:`FAR` standard deviations, where there is a spread: one outlier
    must not decide for all.

    Example:
        >>> import torch
        >>> within_reach(torch.tensor([[3.0, 7.0], [1e6, 7.0]]), torch.tensor([1.0, 0.0]))
        tensor([[ 3.,  7.],
                [10.,  7.]])
    """
    limit_D = torch.where(std_D > 0, FAR * std_D, torch.inf)
    return deviation_ND.clamp(-limit_D, limit_D)
