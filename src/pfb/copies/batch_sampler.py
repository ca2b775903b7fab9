"""Copies found while training are not loaded from the second epoch on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler, get_worker_info

from pfb.density.neighbours import NeighbourMemory
from pfb.pruning.batch_pruner import BatchPruner
from pfb.selection.rules import InverseDensity
from pfb.selection.sampling import drawn, generator_of
from pfb.selection.schedule import Progress, Schedule
from pfb.selection.selection import keep_count
from pfb.utils import distributed as sync

VERSION = 1


class Noting(InverseDensity):
    """The default rule, which tells what it drew by.

    Attributes:
        latest: logarithms of the weights of the latest batch, ``[N]``.
    """

    latest: Tensor

    def log_weights(self, features: Tensor, density: NeighbourMemory, own: Tensor | None = None) -> Tensor:
        object.__setattr__(self, "latest", super().log_weights(features, density, own))  # rules are frozen
        return self.latest


class CopyBatchSampler(Sampler[list[int]]):
    """Indices of batches, for ``DataLoader(dataset, batch_sampler=...)``: copies that the first
    epoch finds are hardly loaded again.

    In the first epoch batches come whole and are pruned by a call of this sampler, which notes by
    which weight each sample was drawn: 1 for one that is alone, less the more copies it has. Later
    epochs have as many batches, of the size that pruning leaves, drawn by these weights before
    anything is loaded: in rounds, without replacement, each of as many samples as the weights add
    up to. The call then passes batches on. Weights stay as they are, so that the data set must not
    grow; what the last, incomplete batch would have held counts in full.

    Each rank gets its own part, and all share what they find. Do not let anything else share out
    the batches (Accelerate's ``prepare`` would do so once more).

    Args:
        samples: of the data set.
        batch_size: of one rank, before pruning.
        prune: the share left out, in (0, 1), or :func:`pfb.window` without a ramp, which needs
            ``total_steps``.
        total_steps: batches in the whole training, ``len(sampler) * epochs``.
        seed: of the order and the draws; the same on all ranks.

    Attributes:
        log_weights: ``[samples]`` float32, what is drawn by; 0 for a whole sample.

    Raises:
        ValueError: fewer samples than a batch of each rank, nothing to prune, a ramp, or a window
            without ``total_steps``.

    Example:
        >>> import torch, pfb
        >>> x = torch.randn(40, 8).repeat_interleave(5, 0)
        >>> dataset = torch.utils.data.TensorDataset(x, torch.arange(200))
        >>> sampler = pfb.CopyBatchSampler(200, batch_size=20)
        >>> loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler)
        >>> for epoch in range(2):
        ...     sampler.set_epoch(epoch)
        ...     loaded = [len(index) for x, index in loader if len(sampler(index, x)) == 10]
        >>> loaded
        [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        prune: float | Schedule = 0.5,
        total_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self.samples, self.batch_size, self.seed, self.epoch = samples, batch_size, seed, 0
        if len(self) < 1:
            raise ValueError(f"`samples` must be at least a batch of {batch_size} on each rank (got {samples})")
        self._plan = Progress(prune, total_steps)
        window = self._plan.schedule
        if window.prune == 0 or window.ramp or not self._plan._is_known:
            said = f"{window}, total_steps={total_steps}"
            raise ValueError(f"`prune` must be above 0, without a ramp, a window with `total_steps` (got {said})")
        self._rule = Noting()
        self.pruner = BatchPruner(window.prune, rule=self._rule, seed=seed)
        self.pruner.density.epoch = samples  # a memory of which a third of an epoch is used
        self.log_weights = torch.zeros(samples)
        self._first: Tensor | None = None  # the order of the first epoch, once a batch came

    def __len__(self) -> int:
        """Batches of each rank, in every epoch."""
        return self.samples // (self.batch_size * sync.world_size())

    def set_epoch(self, epoch: int) -> None:
        """Which epoch begins, 0 first: call it before each, on all ranks."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches of the epoch, the same whenever it is asked.

        Raises:
            RuntimeError: a later epoch, and the first has not been met.
        """
        if self.epoch and self.pruner.steps < len(self):
            seen = f"{self.pruner.steps} of {len(self)} batches"
            raise RuntimeError(
                f"later epochs need epoch 0, of which {seen} were seen: set_epoch(0) or load_state_dict()"
            )
        ranks, rank = sync.world_size(), sync.rank()
        (whole, generator), by_weight = self._order(self.epoch), torch.empty(0, dtype=torch.int64)
        end, total = (self.epoch + 1) * len(self), self._plan.total_steps
        if self._plan.schedule.needs_total_steps and end > (total or 0):
            warnings.warn(
                f"pfb: this epoch ends after step {end}, and the window after total_steps={total}: then batches are "
                "whole. It counts steps, not epochs: len(sampler) * epochs.",
                stacklevel=2,
            )
        for step in range(self.epoch * len(self), (self.epoch + 1) * len(self)):
            share = self._plan.share_after(step) if self.epoch else 0.0
            size = keep_count(self.batch_size, share)
            while share and len(by_weight) < ranks * size:
                by_weight = torch.cat([by_weight, self._round(generator)])
            order = by_weight if share else whole
            yield order[rank * size : (rank + 1) * size].tolist()
            by_weight, whole = (order[ranks * size :], whole) if share else (by_weight, order[ranks * size :])

    def _order(self, epoch: int) -> tuple[Tensor, torch.Generator]:
        """All indices in the order in which an epoch loads them whole, and what draws the rest."""
        generator = generator_of(torch.device("cpu"), self.seed, epoch)
        return torch.randperm(self.samples, generator=generator), generator

    def _round(self, generator: torch.Generator) -> Tensor:
        """As many indices as the weights add up to, in random order, none twice."""
        log_weights = self.log_weights.cpu()
        number = max(1, round(float(log_weights.double().exp().sum())))
        indices = drawn(log_weights, generator).topk(number).indices
        return indices[torch.randperm(number, generator=generator)]

    def __call__(self, index: Tensor, *batch: Any, by: Any = None) -> Any:
        """The batch to train on: pruned in the first epoch, later as it came.

        Args:
            index: ``[N]`` int64, which samples of the data set these are.
            batch, by: as :class:`pfb.BatchPruner` is called with.

        Raises:
            ValueError: not one index for each sample, or one that this sampler did not draw.
            RuntimeError: more batches than the first epoch has, so that ``set_epoch`` is missing;
                or a loader's worker process, of which nobody hears.
        """
        if get_worker_info() is not None:
            raise RuntimeError("a CopyBatchSampler is called in the training loop, not in a worker of the loader")
        given = batch[0] if len(batch) == 1 else batch
        if self.epoch or self.pruner._is_paused:
            return given
        if self.pruner.steps >= len(self):
            raise RuntimeError(f"the first epoch has {len(self)} batches, and this is one more: call set_epoch(1)")
        place_N = index.detach().double().cpu().flatten()
        wrong_N = (place_N < 0) | (place_N >= self.samples) | (place_N != place_N.floor())
        if wrong_N.any():
            got = f"(got {place_N[wrong_N][0]:g}); of a data set that grows, make a new sampler"
            raise ValueError(f"`index` must hold whole numbers in [0, {self.samples}) {got}")
        if self._first is None:
            self._first, _ = self._order(0)
        first = (self.pruner.steps * sync.world_size() + sync.rank()) * self.batch_size
        drawn_B = self._first[first : first + self.batch_size]
        if not torch.isin(place_N, drawn_B).all():
            raise ValueError(
                "`index` must hold the places that this sampler drew, in the order of its batches (got others: places "
                "in another data set, of before a shuffle, or labels?)"
            )
        is_pruned = self._plan.share_after(self.pruner.steps) > 0
        kept = self.pruner(*batch, by=by)
        latest_N = self._rule.latest
        if len(latest_N) != len(place_N):
            raise ValueError(f"`index` must be one for each of {len(latest_N)} samples (got {len(place_N)})")
        both_R2 = sync.concatenated(torch.stack([place_N.to(latest_N.device), latest_N.double()], 1))
        # A sample whose features are not finite comes by in full, so that the loss shows it.
        found_R = both_R2[:, 1].float().nan_to_num(0.0, 0.0, 0.0)
        self.log_weights = self.log_weights.to(found_R.device).index_copy_(0, both_R2[:, 0].long(), found_R)
        return kept if is_pruned else given

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, equal on all ranks but for counts. The epoch is told by
        ``set_epoch``; of its batches those that were trained on must be skipped.
        """
        batch = {"batch_size": self.batch_size, "ranks": sync.world_size(), "seed": self.seed}
        return {
            "version": VERSION,
            **batch,
            "log_weights": self.log_weights.clone(),
            "pruner": self.pruner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken.

        Raises:
            ValueError: not such a state, or of a data set or batches of another size, of another
                number of ranks, or another seed. Nothing is changed then.
        """
        if not isinstance(state, dict) or state.get("version") != VERSION or "pruner" not in state:
            raise ValueError("this is not a state of a CopyBatchSampler: pass what its `state_dict()` returned")
        weights = state.get("log_weights")
        if not isinstance(weights, Tensor) or weights.shape != (self.samples,) or not weights.isfinite().all():
            got = getattr(weights, "shape", weights)
            raise ValueError(
                f"the state is of a data set of other samples, or damaged: this has {self.samples} (got {got})"
            )
        for name, ours in (("batch_size", self.batch_size), ("ranks", sync.world_size()), ("seed", self.seed)):
            if state.get(name) != ours:
                saved = state.get(name)
                raise ValueError(
                    f"the state was saved with {name}={saved!r}, this has {name}={ours!r}: make it as before"
                )
        self.pruner.load_state_dict(state["pruner"])
        self.log_weights = weights.detach().float().cpu().clone()
