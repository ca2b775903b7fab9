"""The one-line tool: a batch comes back without the samples that resemble others seen lately."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pfb.density.kernels import Density
from pfb.features.base import Features
from pfb.features.judged import are_images, labels_of
from pfb.pruning.agreement import Agreement
from pfb.pruning.arguments import checked_density, checked_features
from pfb.pruning.counts import Counts
from pfb.pruning.first_look import FirstLook
from pfb.pruning.judging import Judge
from pfb.selection.choice import choose, collect
from pfb.selection.rules import InverseDensity, Rule, checked_rule
from pfb.selection.sampling import generator_of
from pfb.selection.schedule import Progress, Schedule
from pfb.selection.select import Declared, select_parts
from pfb.selection.selection import Selection, parts
from pfb.selection.views import Views
from pfb.utils import distributed as sync
from pfb.utils import states

VERSION = 1
STATE = {"version", "step", "seed", "features", "judged", "lists", "density", "counts"}


class BatchPruner(Progress):
    """Prune batches before the model sees them: inputs, labels, masks and whatever else belongs to
    a sample are selected together, so nothing can be mispaired, in any model and any trainer.

    One call judges the batch, remembers it and counts a step. With the defaults samples are kept
    less often the more they resemble one seen lately (near-duplicates), as fixed random features of
    the input tell; the model plays no part. It draws from a generator of its own, so the training's
    random numbers are what they would be without it.

    Args:
        prune: share of each batch that is left out, in [0, 1), or :func:`pfb.window`. N samples
            keep ``N - floor(prune * N)``, at least 2 (N itself if smaller).
        rule: which samples matter; default :class:`pfb.InverseDensity`.
        features: what samples are judged by: default :class:`pfb.Sketch`; :class:`pfb.Shallow` for
            features of the model; or a function that returns ``[N, D]``.
        density: default :class:`pfb.NeighbourMemory` for ``InverseDensity``, else the paper's
            :class:`pfb.MovingCenters`.
        total_steps: calls in the whole training; needed by :func:`pfb.window`.
        views: rows of a batch that belong together and are kept together or not at all: their
            number, or :class:`pfb.Views`.
        seed: of its own random numbers; the same on all ranks.
        group: process group of the ranks whose batches differ (data parallel), where others hold
            the same batch (tensor or sequence parallel); default all ranks.
        shared, items, dims: names of places in the batch that cannot be told by looking: what all
            samples share, what has one item per sample, and where the samples are if not first
            (``dims={"position_ids": 1}``).
        on_left_out: called with the left-out part of each pruned batch, in the batch's structure:
            read ids there, or count them.

    Attributes:
        selection: which samples the latest call kept, ``.indices`` (ascending int64) and
            ``.batch_size``; ``None`` if it chose nothing.
        schedule: the share left out over training.
        steps: calls so far, those while paused not counted.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names the rule, the value
            got and the way out.

    Example:
        >>> import torch, pfb
        >>> pruner = pfb.BatchPruner(prune=0.5)
        >>> x, y = pruner(torch.randn(10, 3, 8, 8), torch.arange(10))
        >>> x.shape, y.shape
        (torch.Size([5, 3, 8, 8]), torch.Size([5]))
    """

    def __init__(
        self,
        prune: float | Schedule = 0.5,
        *,
        rule: Rule | None = None,
        features: Features | Callable[[Any], Tensor] | None = None,
        density: Density | None = None,
        total_steps: int | None = None,
        views: int | Views = 1,
        seed: int = 0,
        group: Any = None,
        shared: Any = (),
        items: Any = (),
        dims: Mapping[str, int] | None = None,
        on_left_out: Callable[[Any], None] | None = None,
    ) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise TypeError(f"`seed` must be a whole number (got {seed!r})")
        if on_left_out is not None and not callable(on_left_out):
            raise TypeError(f"`on_left_out` must be a function of the left-out part of a batch (got {on_left_out!r})")
        super().__init__(prune, total_steps)
        self._rule = checked_rule(rule, InverseDensity())
        self.density: Any = checked_density(density, self._rule.rule)
        self.views = views if isinstance(views, Views) else Views(views)
        self.seed = seed
        self.group = group
        self.declared = Declared.of(shared, items, dims)
        self._judge = Judge(checked_features(features), self.declared, self._rule.reads)
        self._on_left_out = on_left_out
        self.selection: Selection | None = None
        self._counts = Counts()
        self._lists: dict[str, bool] = {}
        self._agreement = Agreement()
        self._first_look = FirstLook()

    # What a training loop calls

    def __call__(self, *batch: Any, by: Any = None) -> Any:
        """The batch with K of its N samples.

        Args:
            batch: tensors, arrays, lists with one item per sample, and tuples, lists, dicts, named
                tuples, dataclasses, BatchEncodings or TensorDicts of them.
            by: what to judge by, where it is not the first thing that the features know: a key, a
                function of the batch, or a tensor ``[N, ...]`` (the images before they were
                augmented, for instance).

        Returns:
            The same structure with K of N rows: for one argument that, for several a tuple. The
            very objects that were passed in while paused, at a share of 0, or if all are kept.

        Raises:
            ValueError, TypeError: a part of the batch has not N rows or cannot be selected from;
                the message names its place. Nothing is remembered or counted then.
            RuntimeError: ranks that differ in settings or steps.
        """
        if not batch:
            raise TypeError("a BatchPruner is called with a batch: pruner(x, y)")
        given = batch[0] if len(batch) == 1 else batch
        self.selection = None
        if self._is_paused:
            return given
        if not self._is_known:
            raise RuntimeError(
                "`total_steps` is needed by `pfb.window`: pass it, or set `pruner.total_steps = len(loader) * epochs` "
                "before training (got None)"
            )
        share = parts(self.prune)
        if share == 0:
            self._advance()
            return given
        return self._pruned(given, by, share)

    # What it knows

    @property
    def rule(self) -> Rule:
        """Which samples matter."""
        return self._rule.rule

    @property
    def features(self) -> Features:
        """What samples are judged by."""
        return self._judge.features

    @property
    def judged_by(self) -> str | None:
        """Path of the part of the batch that samples are judged by, once a batch has told."""
        return self._judge.judged_by

    def share_after(self, steps: int) -> float:
        """The share left out so many calls after the next one; 0 while paused."""
        return 0.0 if self._is_paused else super().share_after(steps)

    def latest_sizes(self, batch: Any) -> tuple[int, int]:
        """How many samples the latest batch, this one, had, and how many of them were kept."""
        if self.selection is not None:
            return self.selection.batch_size, len(self.selection.indices)
        n = self._judge.count(batch)
        return n, n

    @property
    def stats(self) -> dict[str, Any]:
        """Numbers to log; reading them waits for the device, training never does.

        ``step``; ``kept_share`` and ``pruned_share`` of the latest batch; ``copy_share``, the share
        of it that looked like a copy of one seen lately; the density's own; and, where batches hold
        whole-number labels, ``kept_by_class``: the share kept of each class so far.
        """
        latest = self.selection
        kept = 1.0 if latest is None else len(latest.indices) / max(latest.batch_size, 1)
        stats: dict[str, Any] = {"step": float(self.steps), "kept_share": kept, "pruned_share": 1.0 - kept}
        return {**stats, **self.density.summary(), **self._counts.summary()}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors, numbers and texts, so that
        ``torch.load(weights_only=True)`` reads it. Tensors are references, as in PyTorch: save or
        copy them before the next call. Equal on all ranks of the group but for counts.
        """
        return {
            "version": VERSION,
            "step": self.steps,
            "seed": self.seed,
            "features": self.features.name,
            "judged": self.judged_by,
            "lists": dict(self._lists),
            "density": self.density.state_dict(),
            "counts": self._counts.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken, in the middle of an epoch, too.

        Raises:
            ValueError: not a pruner's state, or of another version, features or density. Nothing is
                changed then.
        """
        states.check(state, STATE, VERSION, "pfb.BatchPruner", features=self.features.name)
        if type(state["seed"]) is not int:
            raise ValueError(f"the state's `seed` must be a whole number (got {state['seed']!r})")
        lists = state["lists"]
        if not isinstance(lists, dict) or not all(isinstance(value, bool) for value in lists.values()):
            raise ValueError(f"the state's `lists` must map places to True or False (got {lists!r})")
        if not (state["judged"] is None or isinstance(state["judged"], str)):
            raise ValueError(f"the state's `judged` must be a place or None (got {state['judged']!r})")
        counts = Counts.from_state(state["counts"])
        with sync.among(self.group):
            self.density.load_state_dict(state["density"])
        self._counts, self._judge.judged_by = counts, state["judged"]
        self.seed = state["seed"]
        self._lists.clear()
        self._lists.update(lists)
        self.steps = state["step"]
        self.selection = None

    def __getstate__(self) -> dict[str, Any]:
        if self.group is not None:
            raise TypeError(
                "a BatchPruner with `group=` cannot be copied or pickled, since a process group belongs to its "
                "process: make one in each process, and load_state_dict() of the other's"
            )
        return self.__dict__.copy()

    def __repr__(self) -> str:
        return f"BatchPruner(prune={self.prune:g}, judged_by={self.judged_by!r}, steps={self.steps})"

    # Inside

    def _pruned(self, batch: Any, by: Any, share: int) -> Any:
        before, lists = self._judge.judged_by, dict(self._lists)
        with torch.inference_mode(False), torch.no_grad(), sync.among(self.group):
            path, judged, features_ND = self._judge.judge(batch, by)
            n = len(features_ND)
            if self._rule.reads != "nothing":
                self._first_look.look_at_features(features_ND, self.views)
            generator = generator_of(features_ND.device, self.seed, sync.rank(), _worker(), self.steps)
            own_ND = self.features.own_view(judged, generator) if "own" in self._rule.takes else None
            choice = choose(features_ND, self._rule, self.density, self.views, share, own_ND, generator)
        indices = choice.indices
        is_list = path == "batch" and are_images(batch)
        try:
            kept, left = select_parts(batch, indices, n, is_list, lists, self.declared), None
            if self._on_left_out is not None and len(indices) < n:
                left = select_parts(batch, _others(indices, n), n, is_list, lists, self.declared)
        except Exception:
            self._judge.judged_by = before
            raise
        self._lists.update(lists)
        with torch.inference_mode(False), torch.no_grad(), sync.among(self.group):
            self._agreement.check(self, features_ND, indices)
            collect(features_ND, indices, self._rule, self.density, self.views)
            if self._rule.reads == "density":
                self.density.apply()
            self._counts.note(labels_of(batch, n), indices, n)
            self._counts.note_weights(choice.log_weights, self.steps)
        self.selection = Selection(indices, n)
        self._first_look.count(len(indices), n)
        self._advance()
        if left is not None and self._on_left_out is not None:
            self._on_left_out(left)
        return kept


def _others(indices_K: Tensor, n: int) -> Tensor:
    """All other indices, ascending."""
    is_kept = torch.zeros(n, dtype=torch.int64, device=indices_K.device).index_fill(0, indices_K, 1)
    return torch.topk(1 - is_kept, n - len(indices_K)).indices.sort().values


def _worker() -> int:
    """The loader's worker process that this is, from 1; 0 for none."""
    info = torch.utils.data.get_worker_info()
    return 0 if info is None else info.seed + 1
