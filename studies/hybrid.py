"""Copies found while training are not loaded from the second epoch on: the first epoch is pruned in
the batch, later ones are drawn before loading by the weights that the first has found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler, get_worker_info

import pfb
from pfb.selection.sampling import drawn, generator_of
from pfb.selection.schedule import Progress
from pfb.selection.selection import keep_count
from pfb.utils import distributed as sync

VERSION = 1


class Noting(pfb.InverseDensity):
    """The default rule, which tells what it drew by.

    Attributes:
        latest: logarithms of the weights of the latest batch, ``[N]``.
    """

    latest: Tensor

    def log_weights(self, features: Tensor, density: Any, own: Tensor | None = None) -> Tensor:
        found = super().log_weights(features, density, own)
        object.__setattr__(self, "latest", found)  # rules are frozen
        return found


@dataclass(frozen=True)
class Looking(pfb.Schedule):
    """A schedule under which every batch is judged, also one that is to be trained on whole."""

    def share(self, step: int, total_steps: int | None) -> float:
        return super().share(step, total_steps) or self.prune


class CopyBatches(Sampler[list[int]]):
    """Indices of batches, for ``DataLoader(dataset, batch_sampler=...)``. In the first epoch
    batches come whole and are pruned by this object's call, which notes what each sample was drawn
    by; from the second on an epoch holds as many batches of the size that pruning leaves, drawn by
    those weights: in rounds, without replacement, each of as many samples as the weights add up to
    (a sample that is alone counts 1, a copy about 1/80). So copies are hardly loaded, no batch
    changes its size, and no sample is judged again.

    Weights are those of the first epoch until the end: an epoch's order depends on seed, epoch and
    weights alone. Samples that no batch held (the rest of ``samples / batch_size``) count in full.

    Args:
        samples: of the data set, which must not grow.
        batch_size: of one rank, before pruning.
        prune: the share left out, or :func:`pfb.window`, which needs ``total_steps``.
        total_steps: batches in the whole training, ``len(batches) * epochs``.
        seed: of the order and the draws; the same on all ranks.

    Attributes:
        log_weights: ``[samples]`` float32, what samples are drawn by; 0 for a whole one.

    Raises:
        ValueError: fewer samples than one batch of each rank, or a wrong ``prune``.

    Example:
        >>> x = torch.randn(40, 8).repeat_interleave(5, 0)
        >>> batches = CopyBatches(200, 20)
        >>> for indices in batches:
        ...     index = torch.tensor(indices)
        ...     kept_x, kept_index = batches(index, x[index], index)
        >>> batches.set_epoch(1)
        >>> [len(indices) for indices in batches]
        [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        prune: float | pfb.Schedule = 0.5,
        *,
        total_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self.samples, self.batch_size, self.seed, self.epoch = samples, batch_size, seed, 0
        if not 1 <= batch_size * sync.world_size() <= samples:
            raise ValueError(
                f"`samples` must be at least one batch of each rank, {batch_size} x {sync.world_size()} (got {samples})"
            )
        self._plan = Progress(prune, total_steps)
        if self._plan.schedule.prune == 0:
            raise ValueError("`prune` must be above 0 (got 0), or nothing is drawn: use a DataLoader's own sampler")
        if not self._plan.is_known:
            raise ValueError("`total_steps` is needed by `pfb.window`: pass len(batches) * epochs (got None)")
        asked = self._plan.schedule
        looking = Looking(asked.prune, asked.start, asked.stop, asked.ramp)
        self._rule = Noting()
        self.pruner = pfb.BatchPruner(looking, rule=self._rule, total_steps=total_steps, seed=seed)
        if isinstance(self.pruner.density, pfb.NeighbourMemory):
            self.pruner.density.epoch = samples
        self.log_weights = torch.zeros(samples)

    def __len__(self) -> int:
        """Batches of each rank in every epoch."""
        return self.samples // (self.batch_size * sync.world_size())

    def set_epoch(self, epoch: int) -> None:
        """Which epoch begins, 0 first: call it before each on all ranks."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches of the epoch.

        Raises:
            RuntimeError: a later epoch, and the first has not been met.
        """
        if self.epoch and not self.pruner.steps:
            raise RuntimeError(
                f"epoch {self.epoch} is drawn by what epoch 0 has found, and nothing was: begin with set_epoch(0), or "
                "load_state_dict() of the run that goes on"
            )
        ranks, rank = sync.world_size(), sync.rank()
        generator = generator_of(torch.device("cpu"), self.seed, self.epoch)
        all_N = torch.randperm(self.samples, generator=generator)
        drawn_K = torch.empty(0, dtype=torch.int64)
        for size, is_drawn in zip(*self._sizes(), strict=True):
            while is_drawn and len(drawn_K) < ranks * size:
                drawn_K = torch.cat([drawn_K, self._round(generator)])
            order = drawn_K if is_drawn else all_N
            yield order[rank * size : (rank + 1) * size].tolist()
            if is_drawn:
                drawn_K = drawn_K[ranks * size :]
            else:
                all_N = all_N[ranks * size :]

    def _round(self, generator: torch.Generator) -> Tensor:
        """As many indices as the weights add up to, in random order, none twice."""
        number = max(1, round(float(self.log_weights.double().exp().sum())))
        drawn_K = drawn(self.log_weights, generator).topk(number).indices
        return drawn_K[torch.randperm(number, generator=generator)]

    def _sizes(self) -> tuple[list[int], list[bool]]:
        """Of each batch of the epoch its samples, and whether they are drawn by weight."""
        steps = range(self.epoch * len(self), (self.epoch + 1) * len(self))
        shares = [self._plan.schedule.share(step, self._plan.total_steps) if self.epoch else 0.0 for step in steps]
        return [keep_count(self.batch_size, share) for share in shares], [share > 0 for share in shares]

    def __call__(self, index: Tensor, *batch: Any) -> Any:
        """The batch as it is to train on: pruned in the first epoch, as it came later.

        Args:
            index: ``[N]`` int64, which samples of the data set these are.
            batch: as :class:`pfb.BatchPruner` is called with, the first part judged.

        Raises:
            ValueError: not one index for each sample, or one that the data set has not.
            RuntimeError: more batches than the first epoch has, so that ``set_epoch`` is missing;
                or a worker process, which nobody hears of.
        """
        if get_worker_info() is not None:
            raise RuntimeError("CopyBatches is called in the training loop, not in a worker of the loader")
        if self.epoch:
            return batch[0] if len(batch) == 1 else batch
        if self.pruner.steps >= len(self):
            raise RuntimeError(f"the first epoch has {len(self)} batches, and this is one more: set_epoch(1)")
        index_N = index.detach().cpu()
        if index_N.dim() != 1 or index_N.is_floating_point() or index_N.dtype == torch.bool:
            raise ValueError(f"`index` must hold whole numbers [N] (got {index_N.dtype} {tuple(index_N.shape)})")
        if len(index_N) and not 0 <= int(index_N.min()) <= int(index_N.max()) < self.samples:
            worst = int(index_N.max()) if int(index_N.max()) >= self.samples else int(index_N.min())
            raise ValueError(
                f"`index` must be in [0, {self.samples}), the samples of the data set (got {worst}). It must not grow: "
                "make new CopyBatches for a larger one"
            )
        is_pruned = self._plan.share_after(self.pruner.steps) > 0
        kept = self.pruner(*batch)
        weights_N = self._rule.latest
        if len(weights_N) != len(index_N):
            raise ValueError(f"`index` must be one for each of the {len(weights_N)} samples (got {len(index_N)})")
        both_R2 = sync.concatenated(torch.stack([index_N.to(weights_N.device).double(), weights_N.double()], 1)).cpu()
        # A sample whose features are not finite comes by in full, so that the loss shows it.
        self.log_weights[both_R2[:, 0].long()] = both_R2[:, 1].float().nan_to_num(0.0, 0.0, 0.0)
        if is_pruned:
            return kept
        return batch[0] if len(batch) == 1 else batch

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, equal on all ranks but for counts; the epoch is told by
        ``set_epoch``, and batches of it that were trained on are skipped by the loader.
        """
        return {"version": VERSION, "log_weights": self.log_weights, "pruner": self.pruner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken.

        Raises:
            ValueError: not such a state, or of a data set of another size. Nothing is changed then.
        """
        if not isinstance(state, dict) or state.get("version") != VERSION or "pruner" not in state:
            raise ValueError("this is not a state of CopyBatches: pass what its `state_dict()` returned")
        weights = state.get("log_weights")
        if not isinstance(weights, Tensor) or weights.shape != (self.samples,):
            got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise ValueError(
                f"the state's `log_weights` must be of the data set's {self.samples} samples (got {got}): what it "
                "holds must not change within a run"
            )
        self.pruner.load_state_dict(state["pruner"])
        self.log_weights = weights.detach().float().cpu().clone()
