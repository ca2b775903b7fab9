"""What each arm of the grid does with a training set: which samples it loads, in what batches, what
it prunes of them, and for how many steps.

Every arm but ``full`` and those at equal epochs has the same budget: the multiplications of a
training in which half of each batch is pruned from 5 % to 87.5 % of the steps. What an arm looks
for beforehand (``find_copies``), and the sketch of a batch, count for nothing; the paper's scoring
is counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import pfb
from pfb.lab.errors import RunError
from pfb.lab.train.data.split import sketched
from pfb.model.cost import shallow_share
from pfb.selection.sampling import drawn
from pfb.selection.selection import keep_count
from studies.sets import Recipe, Task

ARMS = (
    *("full", "short", "small-batch", "uniform"),
    *("paper", "paper-before", "infobatch"),
    *("copies", "copies-fill", "hybrid", "oracle"),
    *("removed", "removed-exact", "removed-true", "removed-at-random"),
    *("sampler", "sampler-found"),
    *("removed-epochs", "removed-exact-epochs", "removed-true-epochs", "removed-at-random-epochs"),
)
"""``short``, ``small-batch``: fewer steps, or smaller batches. ``uniform``: pruned at random.
``paper``: ``pfb.attach``; ``paper-before``: its rule before the model. ``copies``: near-duplicates
pruned in the batch, ``pfb.BatchPruner`` as it comes; ``copies-fill``: the same, gathered to full
batches; ``hybrid``: the same in the first epoch, and later epochs are drawn before loading by the
weights that it found, ``pfb.CopyBatchSampler``. ``oracle``: drawn in the batch with weight 1 / size
of the group. ``removed``: one of each group stays, as ``find_copies`` tells; ``-exact``: as
equality tells; ``-true``: as the known groups tell; ``-at-random``: as many as ``-true`` leave.
``sampler``: loaded with weight 1 / size of the group, and ``-found`` as ``find_copies`` tells.
``-epochs``: as many epochs of the rest as ``full`` has of all, which is less than the budget.
"""
PRUNE, START, STOP = 0.5, 0.05, 0.875
BUDGET = 1 - PRUNE * (STOP - START)

Batch = tuple[Tensor, Tensor, Tensor]
"""What the model takes, classes, and indices of the samples."""


@dataclass(frozen=True)
class Sizes:
    """Of a run.

    Attributes:
        loads: batches that are loaded.
        steps: optimizer steps.
        batch_size: samples of a loaded batch.
        compute: multiplications, those of ``full`` = 1.
    """

    loads: int
    steps: int
    batch_size: int
    compute: float


def sizes(arm: str, full_steps: int, batch_size: int, left: float = 1.0, shallow: float = 0.0) -> Sizes:
    """How long an arm trains.

    Args:
        arm: which.
        full_steps: of the arm ``full``.
        batch_size: of the arm ``full``.
        left: part of the samples that are left, where some were removed.
        shallow: the shallow part's share of the model, for the paper's arms.

    Example:
        >>> [sizes(arm, 1000, 64).steps for arm in ("full", "short", "uniform", "copies-fill")]
        [1000, 588, 1000, 587]
        >>> [sizes(arm, 1000, 64, left=0.4).steps for arm in ("removed-epochs", "removed")]
        [400, 588]
    """
    short = round(BUDGET * full_steps)
    if arm == "full":
        return Sizes(full_steps, full_steps, batch_size, 1.0)
    if arm.endswith("-epochs"):
        steps = max(2, round(left * full_steps))
        return Sizes(steps, steps, batch_size, steps / full_steps)
    if arm == "small-batch":
        small = max(2, round(BUDGET * batch_size))
        return Sizes(full_steps, full_steps, small, small / batch_size)
    if arm in ("uniform", "copies", "hybrid", "oracle"):
        return Sizes(full_steps, full_steps, batch_size, _kept(full_steps, batch_size) / (full_steps * batch_size))
    if arm == "copies-fill":
        steps = _kept(full_steps, batch_size) // batch_size
        return Sizes(full_steps, steps, batch_size, steps / full_steps)
    if arm in ("paper", "paper-before"):
        # docs/method.md, with a backward counted as two forwards
        pruned = 1 - PRUNE * (1 - shallow) if arm == "paper" else 1 - PRUNE + shallow / 3
        cost = 1 + (pruned - 1) * (STOP - START)
        steps = round(full_steps * BUDGET / cost)  # what scoring costs is paid in steps
        return Sizes(steps, steps, batch_size, cost * steps / full_steps)
    return Sizes(short, short, batch_size, short / full_steps)


def _kept(loads: int, batch_size: int) -> int:
    """Samples that so many pruned batches keep."""
    share = pfb.window(PRUNE, START, STOP)
    return sum(keep_count(batch_size, share.share(i, loads)) for i in range(loads))


def left_after_removal(arm: str, task: Task, seed: int) -> Tensor:
    """Indices of the samples that an arm trains on, ascending; all for one that removes nothing.

    Raises:
        RunError: no two samples are equal, and ``removed-exact`` was asked for.
    """
    n = len(task.y)
    kind = arm.removesuffix("-epochs")
    if kind == "removed":
        return found(task).keep
    if kind == "removed-exact":
        _, which = torch.unique(task.x.flatten(1), dim=0, return_inverse=True)
        if (left := firsts(which)).numel() == n:
            raise RunError("--arms removed-exact needs equal samples, of which this set has none; leave it out")
        return left
    if kind == "removed-true":
        return firsts(task.groups)
    if kind == "removed-at-random":
        generator = torch.Generator().manual_seed(seed)
        left = torch.randperm(n, generator=generator)[: len(firsts(task.groups))]
        return left.sort().values
    return torch.arange(n)


def firsts(groups: Tensor) -> Tensor:
    """The first of each group, ascending.

    Example:
        >>> firsts(torch.tensor([3, 3, 1, 3, 1])).tolist()
        [0, 2]
    """
    order = groups.argsort(stable=True)
    _, counts = torch.unique_consecutive(groups[order], return_counts=True)
    starts = counts.cumsum(0) - counts
    return order[starts].sort().values


def found(task: Task) -> pfb.Copies:
    """The near-duplicates that the library finds in a task's training set."""
    features, own = sketched(map(task.prepare, torch.split(task.x, 500)))
    return pfb.find_copies(features, task.labels, own=own, images=task.images)


class Oracle:
    """Draws with weight 1 / the number that each sample is judged by."""

    reads = "features"

    def __call__(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return drawn(-features[:, 0].log(), generator)


class Run:
    """One arm's way through the data.

    Args:
        arm: which.
        task: the data.
        recipe: batch size and epochs.
        model: what is trained, new; the paper's arms attach to it or read it.
        seed: of the order of the samples.

    Attributes:
        loaded: samples that were loaded so far.
        of_full: those that ``full`` loads.
    """

    def __init__(self, arm: str, task: Task, recipe: Recipe, model: nn.Module, seed: int) -> None:
        self.arm, self.task, self.seed = arm, task, seed
        self.left = left_after_removal(arm, task, seed)
        n = len(task.y)
        full_steps = max(2, n // recipe.batch_size * recipe.epochs)
        given = task.prepare(task.x[:2])
        shallow = shallow_share(model, task.cut, given) if arm.startswith("paper") else 0.0
        self.sizes = sizes(arm, full_steps, min(recipe.batch_size, len(self.left)), len(self.left) / n, shallow)
        share = pfb.window(PRUNE, START, STOP)
        self.loaded, self.of_full = 0, full_steps * recipe.batch_size
        self.blocker: pfb.Blocker | None = None
        self.pruner: pfb.BatchPruner | None = None
        self.infobatch = _infobatch(n) if arm == "infobatch" else None
        ways: dict[str, dict[str, Any]] = {
            "uniform": {"rule": pfb.Uniform()},
            "paper-before": {"rule": pfb.RareFirst(), "features": pfb.Shallow(model, task.cut)},
            "copies": {},
            "copies-fill": {},
            "oracle": {"rule": Oracle(), "features": lambda sizes: sizes[:, None].float()},
        }
        if arm == "paper":
            density = pfb.MovingCenters(100)
            self.blocker = pfb.attach(
                model, task.cut, share, density=density, feature_dim=128, total_steps=self.sizes.loads
            )
        if arm in ways:
            self.pruner = pfb.BatchPruner(share, total_steps=self.sizes.loads, seed=seed, **ways[arm])
            if isinstance(self.pruner.density, pfb.NeighbourMemory):
                self.pruner.density.epoch = n  # as prune_batches tells it

    def batches(self) -> Iterator[Batch]:
        """What comes to the model, one batch for each step."""
        if self.arm == "hybrid":
            return itertools.islice(self._drawn_before(), self.sizes.loads)
        loaded = (self._load(indices) for indices in itertools.islice(self._order(), self.sizes.loads))
        pruner = self.pruner
        if pruner is None:
            return loaded
        if self.arm == "copies-fill":
            pruned: Any = pfb.prune_batches(_Loaded(loaded), pruner=pruner, fill=True)
            return itertools.islice(pruned, self.sizes.steps)
        if self.arm == "oracle":
            return (pruner(*batch, by=self.task.sizes[batch[2]]) for batch in loaded)
        if self.arm == "paper-before":
            return (pruner(*batch, by=batch[0]) for batch in loaded)
        return (pruner(*batch) for batch in loaded)

    def _drawn_before(self) -> Iterator[Batch]:
        share, total, n = pfb.window(PRUNE, START, STOP), self.sizes.loads, len(self.task.y)
        sampler = pfb.CopyBatchSampler(n, self.sizes.batch_size, share, total_steps=total, seed=self.seed)
        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            for indices in sampler:
                batch = self._load(torch.tensor(indices))
                yield sampler(batch[2], *batch)

    def _load(self, indices: Tensor) -> Batch:
        self.loaded += len(indices)
        return self.task.augment(self.task.x[indices]), self.task.y[indices], indices

    def _order(self) -> Iterator[Tensor]:
        """Indices of a batch, without end."""
        generator = torch.Generator().manual_seed(self.seed)
        size, done = self.sizes.batch_size, 0
        if self.arm in ("sampler", "sampler-found"):
            weights = found(self.task).weights if self.arm == "sampler-found" else 1 / self.task.sizes
            while True:
                epoch = torch.multinomial(weights.double(), len(weights), replacement=True, generator=generator)
                yield from epoch[: len(epoch) // size * size].view(-1, size)
        while True:
            left = self.left
            if self.infobatch is not None:
                share = PRUNE if done < STOP * self.sizes.loads else 0.0
                chosen = self.infobatch.load(share, generator)
                left = left if chosen is None else chosen
            whole = max(1, len(left) // size)
            order = left[torch.randperm(len(left), generator=generator)][: whole * size]
            for indices in torch.split(order, size):
                done += 1
                yield indices


def _infobatch(samples: int) -> Any:
    from pfb.lab.baselines.infobatch import InfoBatch

    return InfoBatch(samples)


class _Loaded:
    """Batches that come once, as a loader."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        yield from self.batches
