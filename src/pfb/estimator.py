"""Adaptive distribution estimation: a few moving centers stand for all features that training has
seen lately.

Reading (:meth:`DensityEstimator.log_density`), collecting (:meth:`~DensityEstimator.accumulate`)
and writing (:meth:`~DensityEstimator.apply`) are separate, so that every forward within one
optimizer step scores against the same estimate, and ranks talk at one known moment. Shape suffixes:
N samples, C centers, D feature dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfb import sync
from pfb.density import log_density, log_kernels, silverman_bandwidth

DEAD_CHANNEL = 1e-5  # a channel whose spread is below this part of the widest one carries no information


class DensityEstimator:
    """Kernel density of a drifting stream of features (section "Adaptive Distribution Estimation",
    arXiv 2506.23674).

    The first ``n_centers`` samples become the centers. After that, each step sends every collected
    sample to its nearest center (under the kernel's own metric) and moves each center that received
    any towards their mean::

        c_j <- (1 - beta) c_j + beta m_j        w_j = share of all samples so far that went to
        center j

    The features' mean and variance, from which Silverman's rule takes the bandwidth, are a plain
    average over the first ``1 / beta`` steps and a moving one of rate ``beta`` from there on.

    Everything is float32 on the features' device, there is no ``[C, D, N]`` tensor, and no method
    reads a device value on the host (except, with several ranks, ``apply`` during the first steps,
    while centers are being gathered). Samples with NaN or infinite features are never collected, so
    they cannot poison the centers.

    Args:
        n_centers: C; the paper uses about 100, its release 64.
        beta: how far a center moves per step, in (0, 1].

    Attributes:
        centers: ``[C, D]`` float32, or ``None`` while fewer than C samples have been seen.
        counts: ``[C]`` int64, samples that went to each center so far, itself included.
        mean, variance: ``[D]`` float32, of the features.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> estimator = DensityEstimator(n_centers=8)
        >>> for _ in range(20):
        ...     estimator.accumulate(torch.randn(32, 3))
        ...     estimator.apply()
        >>> rare_is_less_dense = estimator.log_density(torch.tensor([[0.0, 0, 0], [5.0, 5, 5]]))
        >>> bool(rare_is_less_dense[0] > rare_is_less_dense[1])
        True
    """

    def __init__(self, n_centers: int = 64, beta: float = 0.01) -> None:
        if not isinstance(n_centers, int) or isinstance(n_centers, bool) or n_centers < 2:
            raise ValueError(f"`n_centers` must be a whole number of at least 2 (got {n_centers!r}); the default is 64")
        if not 0.0 < beta <= 1.0:
            raise ValueError(f"`beta` must be a rate in (0, 1] (got {beta!r}); the paper uses 0.01")
        self.n_centers = n_centers
        self.beta = beta
        self.updates = 0
        self.centers: Tensor | None = None
        self.counts: Tensor | None = None
        self.mean: Tensor | None = None
        self.variance: Tensor | None = None
        self._seeds: list[Tensor] = []  # samples seen before the centers exist
        self._pending: Tensor | None = None  # flat [C * D + C + D]: see _pending_parts

    @property
    def ready(self) -> bool:
        """Whether centers exist. Until then all densities are equal."""
        return self.centers is not None

    @property
    def bandwidth(self) -> Tensor:
        """``[D]``: kernel standard deviations by Silverman's rule over the C kernels; 0 for a dead
        channel.
        """
        assert self.variance is not None
        std_D = self.variance.sqrt()
        return silverman_bandwidth(torch.where(std_D > DEAD_CHANNEL * std_D.max(), std_D, 0.0), self.n_centers)

    @torch.no_grad()
    def log_density(self, x: Tensor) -> Tensor:
        """``log f(x_i)`` of features ``[N, D]``, as float32 ``[N]``. Reads only. All zero until
        centers exist.

        Raises:
            ValueError: another feature width than the centers have.
        """
        x_ND = self._checked(x)
        if self.centers is None:
            return x_ND.new_zeros(x_ND.size(0))
        assert self.counts is not None
        with _full_precision(x_ND.device):
            weights_C = self.counts / self.counts.sum()
            return log_density(x_ND, self.centers, weights_C.float(), self.bandwidth)

    @torch.no_grad()
    def nearest(self, x: Tensor) -> Tensor:
        """Index ``[N]`` (int64) of the center nearest to each feature, in the kernel's metric.
        Reads only.

        Raises:
            ValueError: there are no centers yet, or another feature width than they have.
        """
        x_ND = self._checked(x)
        if self.centers is None:
            raise ValueError(f"there are no centers yet: {self.n_centers} samples must have been kept first")
        with _full_precision(x_ND.device):
            return log_kernels(x_ND, self.centers, self.bandwidth).argmax(1)

    @torch.no_grad()
    def accumulate(self, x: Tensor) -> None:
        """Collect features ``[N, D]`` for the next :meth:`apply`; changes no density."""
        x_ND = self._checked(x)
        if self.centers is None:
            self._seeds.append(x_ND)
            return
        assert self.mean is not None
        with _full_precision(x_ND.device):
            sums_CD, counts_C, squares_D = self._pending_parts()
            finite_N = x_ND.isfinite().all(1)
            nearest_N = log_kernels(x_ND, self.centers, self.bandwidth).argmax(1)
            deviation_ND = torch.where(finite_N[:, None], x_ND - self.mean, 0.0)
            # A product with the assignment matrix: unlike scattered addition it is deterministic on
            # every device.
            went_to_NC = nearest_N[:, None] == torch.arange(self.n_centers, device=x_ND.device)
            went_to_NC = (went_to_NC & finite_N[:, None]).float()
            sums_CD.add_(went_to_NC.T @ deviation_ND)
            counts_C.add_(went_to_NC.sum(0))
            squares_D.add_(deviation_ND.square().sum(0))

    @torch.no_grad()
    def apply(self) -> None:
        """Move the centers by what was collected on all ranks since the last call: the only method
        that writes.

        With several ranks this is one collective, which every rank must enter, also one that
        collected nothing.
        """
        if self.centers is None:
            self._seed()
            return
        assert self.counts is not None and self.mean is not None and self.variance is not None
        sums_CD, counts_C, squares_D = self._pending_parts()
        assert self._pending is not None
        sync.sum_over_ranks(self._pending)
        n = counts_C.sum().clamp_min(1.0)
        self.updates += 1
        rate = max(self.beta, 1.0 / (self.updates + 1))
        means_CD = self.mean + sums_CD / counts_C.clamp_min(1.0)[:, None]
        moved_CD = torch.lerp(self.centers, means_CD, self.beta)
        shift_D = rate * sums_CD.sum(0) / n
        variance_D = torch.lerp(self.variance, squares_D / n, rate) - shift_D.square()
        seen_any = counts_C.sum() > 0
        self.centers.copy_(torch.where(counts_C[:, None] > 0, moved_CD, self.centers))
        self.counts.add_(counts_C.to(torch.int64))
        self.variance.copy_(torch.where(seen_any, variance_D.clamp_min(0.0), self.variance))
        self.mean.add_(shift_D)
        self._pending.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only (safe for ``torch.load(weights_only=True)``); tensors are
        references.
        """
        return {
            "n_centers": self.n_centers,
            "updates": self.updates,
            "centers": self.centers,
            "counts": self.counts,
            "mean": self.mean,
            "variance": self.variance,
            "pending": self._pending,
            "seeds": list(self._seeds),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; its tensors are copied, and moved to the features' device at the next
        use.

        Raises:
            ValueError: missing keys, another number of centers, or shapes that do not belong
                together.
        """
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise ValueError(f"the density state lacks {sorted(missing)}; it is damaged or not a density state")
        if state["n_centers"] != self.n_centers:
            raise ValueError(
                f"the saved density has {state['n_centers']} centers, this one {self.n_centers}: "
                f"attach with `estimator=pfb.DensityEstimator(n_centers={state['n_centers']})`"
            )
        if state["centers"] is not None:
            c, d = state["centers"].shape
            shapes = {k: tuple(state[k].shape) for k in ("centers", "counts", "mean", "variance")}
            if shapes != {"centers": (self.n_centers, d), "counts": (c,), "mean": (d,), "variance": (d,)}:
                raise ValueError(f"the density state's shapes do not belong together (got {shapes})")
        self.updates = state["updates"]
        for name in ("centers", "counts", "mean", "variance"):
            setattr(self, name, _copy(state[name]))
        self._pending = _copy(state["pending"])
        self._seeds = [seed.detach().clone() for seed in state["seeds"]]

    def _seed(self) -> None:
        if not self._seeds:
            if sync.world_size() == 1:
                return
            raise RuntimeError(
                "this rank reached step() before any forward passed the cut, so the ranks cannot agree on first centers. "
                "Give every rank at least one training batch per step, if only an empty one."
            )
        rows_ND = torch.cat(self._seeds)
        rows_ND = rows_ND[rows_ND.isfinite().all(1)] if len(rows_ND) else rows_ND
        centers_CD = sync.rows_of_all_ranks(rows_ND, self.n_centers)
        self._seeds = [rows_ND]
        if len(centers_CD) < self.n_centers:
            return
        self._seeds = []
        self.centers = centers_CD.clone()
        self.counts = torch.ones(self.n_centers, dtype=torch.int64, device=centers_CD.device)
        self.mean = centers_CD.mean(0)
        self.variance = centers_CD.var(0, correction=0)
        self._pending = centers_CD.new_zeros(centers_CD.numel() + self.n_centers + centers_CD.size(1))

    def _pending_parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Views into the one flat buffer: sums of deviations from the mean ``[C, D]``, counts
        ``[C]``, squares ``[D]``.
        """
        assert self._pending is not None and self.centers is not None
        c, d = self.centers.shape
        sums, counts, squares = torch.split(self._pending, [c * d, c, d])
        return sums.view(c, d), counts, squares

    def _checked(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise ValueError(f"features must be [N, D] (got shape {tuple(x.shape)})")
        known = self.centers if self.centers is not None else (self._seeds[0] if self._seeds else None)
        if known is not None and known.size(1) != x.size(1):
            raise ValueError(
                f"features have {x.size(1)} dimensions, the density was built on {known.size(1)}. One blocker serves one "
                "cut of one model; attach anew after changing either."
            )
        if known is not None and known.device != x.device:
            self._move_to(x.device)
        return x.detach().float()

    def _move_to(self, device: torch.device) -> None:
        for name in ("centers", "counts", "mean", "variance", "_pending"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.to(device))
        self._seeds = [seed.to(device) for seed in self._seeds]


def _full_precision(device: torch.device) -> torch.autocast:
    """Switch autocast off: a density in half precision would be noise."""
    return torch.autocast(device.type, enabled=False)


def _copy(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().clone()
