"""Adaptive distribution estimation: a few moving centers stand for all features that training has
seen lately.

Reading (:meth:`MovingCenters.log_density`), collecting (:meth:`~MovingCenters.accumulate`)
and writing (:meth:`~MovingCenters.apply`) are separate, so that every forward within one
optimizer step scores against the same estimate, and ranks talk at one known moment. Shape suffixes:
N samples, C centers, D feature dimensions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pfb.density.centers import Centers
from pfb.density.kernels import Collects, checked_width, full_precision
from pfb.utils import distributed as sync

STEPS_APART = 1024  # ranks compare their steps modulo this, so that the sum is exact in float32
NAMES = ("centers", "counts", "mean", "variance", "pending")


class MovingCenters:
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
        variance: ``[D]`` float32, of the features.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> centers = MovingCenters(n_centers=8)
        >>> for _ in range(20):
        ...     centers.accumulate(torch.randn(32, 3))
        ...     centers.apply()
        >>> rare_is_less_dense = centers.log_density(torch.tensor([[0.0, 0, 0], [5.0, 5, 5]]))
        >>> bool(rare_is_less_dense[0] > rare_is_less_dense[1])
        True
    """

    collects: ClassVar[Collects] = "kept"

    def __init__(self, n_centers: int = 64, beta: float = 0.01) -> None:
        if not isinstance(n_centers, int) or isinstance(n_centers, bool) or n_centers < 2:
            raise ValueError(f"`n_centers` must be a whole number of at least 2 (got {n_centers!r}); the default is 64")
        if not 0.0 < beta <= 1.0:
            raise ValueError(f"`beta` must be a rate in (0, 1] (got {beta!r}); the paper uses 0.01")
        self.n_centers = n_centers
        self.beta = beta
        self.updates = 0
        self._centers: Centers | None = None
        self._seeds: list[Tensor] = []  # samples seen before the centers exist

    @property
    def centers(self) -> Tensor | None:
        return None if self._centers is None else self._centers.centers

    @property
    def counts(self) -> Tensor | None:
        return None if self._centers is None else self._centers.counts

    @property
    def variance(self) -> Tensor | None:
        return None if self._centers is None else self._centers.variance

    @property
    def ready(self) -> bool:
        """Whether centers exist. Until then all densities are equal."""
        return self._centers is not None

    @property
    def bandwidth(self) -> Tensor | None:
        """``[D]``: kernel standard deviations by Silverman's rule over the C kernels; 0 for a dead
        channel.
        """
        return None if self._centers is None else self._centers.bandwidth

    @torch.no_grad()
    def log_density(self, x: Tensor) -> Tensor:
        """``log f(x_i)`` of features ``[N, D]``, as float32 ``[N]``. Reads only. All zero until
        centers exist.

        Raises:
            ValueError: another feature width than the centers have.
        """
        x_ND = self._checked(x)
        if self._centers is None:
            return x_ND.new_zeros(x_ND.size(0))
        with full_precision(x_ND.device):
            return self._centers.log_density(x_ND)

    def summary(self) -> dict[str, float]:
        """``centers_in_use``: those that more samples went to than the one they came from;
        synchronises the device.
        """
        return {"centers_in_use": 0.0 if self.counts is None else float((self.counts > 1).sum())}

    @torch.no_grad()
    def accumulate(self, x: Tensor) -> None:
        """Collect features ``[N, D]`` for the next :meth:`apply`; changes no density."""
        x_ND = self._checked(x)
        if self._centers is not None:
            with full_precision(x_ND.device):
                self._centers.collect(x_ND)
        elif sum(map(len, self._seeds)) < self.n_centers:  # no more of them are used
            self._seeds.append(x_ND)

    @torch.no_grad()
    def apply(self) -> None:
        """Move the centers by what was collected on all ranks since the last call: the only method
        that writes.

        With several ranks this is one collective, which every rank must enter, also one that
        collected nothing.

        Raises:
            RuntimeError: the ranks are at different steps (noticed where the features lie on the
                CPU; on a GPU, asking would cost a synchronisation in every step).
        """
        if self._centers is None:
            self._seed()
            return
        *_, step = self._centers.parts()
        step.fill_(self.updates % STEPS_APART)
        sync.sum_over_ranks(self._centers.pending)
        expected = self.updates % STEPS_APART * sync.world_size()
        if sync.world_size() > 1 and step.device.type == "cpu" and float(step) != expected:
            raise RuntimeError(
                f"the ranks called step() unevenly: this one is at step {self.updates}, and the others are not (their "
                f"sum is {float(step):g} instead of {expected}). Give every rank equally many steps."
            )
        self.updates += 1
        self._centers.move(self.beta, max(self.beta, 1.0 / (self.updates + 1)))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only (safe for ``torch.load(weights_only=True)``); tensors are
        references.
        """
        known = dict.fromkeys(NAMES) if self._centers is None else vars(self._centers)
        return {"n_centers": self.n_centers, "updates": self.updates, "seeds": list(self._seeds), **known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; its tensors are copied, and moved to the features' device at the next
        use.

        Raises:
            ValueError: not a state of a density, of another number of centers, or of parts that do
                not belong together. Nothing is changed then.
        """
        centers, seeds = self._checked_state(state)
        self.updates, self._centers, self._seeds = state["updates"], centers, seeds

    def _checked_state(self, state: dict[str, Any]) -> tuple[Centers | None, list[Tensor]]:
        wanted = {"n_centers", "updates", "seeds", *NAMES}
        if not isinstance(state, dict) or not wanted <= state.keys():
            lacks = sorted(wanted - state.keys()) if isinstance(state, dict) else f"all, it is a {type(state).__name__}"
            raise ValueError(f"the density state lacks {lacks}; it is damaged or not a density state")
        if type(state["n_centers"]) is not int or state["n_centers"] != self.n_centers:
            raise ValueError(
                f"the saved density has {state['n_centers']} centers, this one {self.n_centers}: "
                f"make it with `density=pfb.MovingCenters(n_centers={state['n_centers']})`"
            )
        updates, seeds = state["updates"], state["seeds"]
        tensors = {name: state[name] for name in NAMES}
        if type(updates) is not int or updates < 0:
            raise ValueError(f"the density state's `updates` must be a whole number >= 0 (got {updates!r})")
        if not isinstance(seeds, list) or any(not isinstance(x, Tensor) or x.dim() != 2 for x in seeds):
            raise ValueError(
                f"the density state's `seeds` must be a list of tensors [N, D] (got {type(seeds).__name__})"
            )
        seeds = [seed.detach().clone() for seed in seeds]
        if all(value is None for value in tensors.values()):
            return None, seeds
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            raise ValueError(f"the density state's {', '.join(NAMES)} must be tensors all, or None all")
        centers = Centers(**{name: value.detach().clone() for name, value in tensors.items()})
        c, d = self.n_centers, centers.mean.numel()
        shapes = {"centers": (c, d), "counts": (c,), "mean": (d,), "variance": (d,), "pending": (c * d + c + d + 1,)}
        expected = {name: (shapes[name], torch.int64 if name == "counts" else torch.float32) for name in NAMES}
        if (got := {name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}) != expected:
            raise ValueError(f"the density state's tensors do not belong together (got {got})")
        return centers, seeds

    def _seed(self) -> None:
        if not self._seeds:
            if sync.world_size() == 1:
                return
            raise RuntimeError(
                "this rank reached step() before any forward passed the cut, so the ranks cannot agree on first "
                "centers. Give every rank at least one training batch per step, if only an empty one."
            )
        rows_ND = torch.cat(self._seeds)
        rows_ND = rows_ND[rows_ND.isfinite().all(1)] if len(rows_ND) else rows_ND
        centers_CD = sync.rows_of_all_ranks(rows_ND, self.n_centers)
        self._seeds = [rows_ND]
        if len(centers_CD) == self.n_centers:
            self._seeds = []
            self._centers = Centers.at(centers_CD)

    def _checked(self, x: Tensor) -> Tensor:
        known = self.centers if self.centers is not None else (self._seeds[0] if self._seeds else None)
        x_ND = checked_width(x, None if known is None else known.size(1))
        if known is not None and known.device != x.device:
            self._centers = None if self._centers is None else self._centers.to(x.device)
            self._seeds = [seed.to(x.device) for seed in self._seeds]
        return x_ND
