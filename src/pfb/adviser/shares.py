"""Finding: whom the default would leave out, by running it over the samples without a training.

Shape suffixes: N samples, B those of a batch, D feature dimensions.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from pfb.adviser.near_copies import NearCopies
from pfb.adviser.scan import Progress, Scan
from pfb.copies.batch_sampler import Noting
from pfb.density.neighbours import NeighbourMemory
from pfb.features.base import Features
from pfb.pruning.batch_pruner import BatchPruner

EPOCHS = 4  # that are counted, after one that fills the memory
FEWEST = 64  # samples; of fewer nothing is told
LEAST_BATCH = 32
STARVED = 0.7  # of the mean share kept: a class below it is told
DEVIATIONS = 3.0  # that it must be beyond chance
SIZES = (("single", 1, 1), ("of 2 to 5", 2, 5), ("of 6 to 20", 6, 20), ("of more", 21, math.inf))
LIKE_A_COPY = math.log(1 / 8)  # of the weight of a lone sample
WORTH_TELLING = 0.01  # of the samples
SHOWN = 24  # samples without copies that are kept least often
FEW_CLASSES = 6  # of more, the least kept are told


@dataclass(frozen=True)
class Shares:
    """What share of the samples the default keeps.

    Attributes:
        prune: the share left out of each batch.
        mean: the share kept of all.
        by_group: by the size of a sample's group of near-copies, of those sizes that occur.
        by_class: by class, if labels are classes.
        starved: classes of which less than 0.7 of the mean is kept, beyond chance, the least kept
            first, and what share of each are near-copies.
        mistaken: share of the samples that have no near-copy, but that the default takes for copies
            (it draws them an eighth as often as a lone one or less).
        least_kept: indices of these, those with the least weight first, 24 at most.
    """

    prune: float
    mean: float
    by_group: dict[str, float]
    by_class: dict[int, float] | None
    starved: dict[int, float]
    mistaken: float
    least_kept: tuple[int, ...]


class Replayed(Features):
    """Features that were read before, of samples by their places."""

    name = "replayed"

    def __init__(self, features_ND: Tensor, own_ND: Tensor | None) -> None:
        self._features_ND, self._own_ND = features_ND, own_ND

    def __call__(self, x: Tensor) -> Tensor:
        return self._features_ND[x]

    def own_view(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        return None if self._own_ND is None else self._own_ND[x]


def find(seen: Scan, copies: NearCopies, prune: float, progress: Progress) -> Shares | None:
    """Run :class:`pfb.BatchPruner` over the samples in random order; ``None`` for fewer than 64."""
    n = len(seen)
    if n < FEWEST:
        return None
    kept_N, log_weights_N = simulated(
        seen.features, seen.own, prune, min(copies.memory, n // 3), seen.batch_size, progress
    )
    mean = float(kept_N.mean())
    by_group = {}
    for name, low, high in SIZES:
        inside_N = (copies.group_sizes >= low) & (copies.group_sizes <= high)
        if inside_N.any():
            by_group[name] = float(kept_N[inside_N].mean())
    by_class, starved = (None, {}) if seen.labels is None else _by_class(kept_N, seen.labels, copies, mean)
    mistaken_N = (copies.group_sizes == 1) & (log_weights_N < LIKE_A_COPY)
    least_M = mistaken_N.nonzero()[:, 0]
    least_M = least_M[log_weights_N[least_M].argsort(stable=True)]
    return Shares(
        prune,
        mean,
        by_group,
        by_class,
        starved,
        float(mistaken_N.double().mean()),
        seen.numbered(least_M[:SHOWN].tolist()),
    )


def say(found: Shares) -> list[tuple[str, str]]:
    """Rows of the advice."""
    groups = ", ".join(f"{name} {share:.2f}" for name, share in found.by_group.items())
    rows = [("kept", f"with {found.prune:.0%} left out, by group of near-copies: {groups} (all: {found.mean:.2f})")]
    if found.by_class:
        order = sorted(found.by_class, key=lambda c: found.by_class[c])  # type: ignore[index]
        some = order if len(order) <= FEW_CLASSES else [*order[: FEW_CLASSES - 1], order[-1]]
        classes = ", ".join(f"{c} {found.by_class[c]:.2f}" for c in some)
        rows.append(("", f"by class: {classes}{' (the others lie between)' if len(order) > len(some) else ''}"))
    if found.mistaken >= WORTH_TELLING:
        why = "have no near-copy, but are left out like copies: they are only more alike than the rest"
        rows.append(("mistaken", f"{found.mistaken:.0%} of the samples {why}"))
    if found.starved:
        some = list(found.starved)[:FEW_CLASSES]
        classes = ", ".join(f"{c} ({found.starved[c]:.0%} near-copies)" for c in some)
        rows.append(("warning", f"kept less than {STARVED} as often as the mean: class {classes}"))
    return rows


@torch.no_grad()
def simulated(
    features_ND: Tensor, own_ND: Tensor | None, prune: float, memory: int, batch_size: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """In what share of its batches each sample is kept by the default, and the mean logarithm of
    the weight it is drawn by, ``[N]`` both.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.cat([torch.randn(300, 12), torch.randn(15, 12).repeat(20, 1)])
        >>> kept, _ = simulated(x, None, 0.5, 200, 50, lambda *told: None)
        >>> bool(kept[:300].mean() > 0.6), bool(kept[300:].mean() < 0.4)
        (True, True)
    """
    n = len(features_ND)
    rule = Noting()
    pruner = BatchPruner(prune, rule=rule, features=Replayed(features_ND, own_ND), density=NeighbourMemory(memory))
    generator, kept_N, weight_N, looks_N = torch.Generator().manual_seed(0), *torch.zeros(3, n)
    size = max(batch_size, LEAST_BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the pruner says of this stream is told in the advice
        for epoch in range(1 + EPOCHS):
            for place, index_B in enumerate(torch.split(torch.randperm(n, generator=generator), size)):
                kept_K = pruner(index_B, by=index_B)
                if place * size >= memory:  # before, samples meet themselves from the epoch before
                    weight_N[index_B] += rule.latest
                    looks_N[index_B] += 1
                if epoch > 0:
                    kept_N[kept_K] += 1 / EPOCHS
            progress("trying the default", (epoch + 1) * n, (1 + EPOCHS) * n)
    return kept_N, weight_N / looks_N.clamp_min(1)


def _by_class(
    kept_N: Tensor, labels: Tensor, copies: NearCopies, mean: float
) -> tuple[dict[int, float], dict[int, float]]:
    """The share kept of each class, and of those that are starved the share of near-copies."""
    by_class, starved = {}, {}
    for c in torch.unique(labels).tolist():
        of_C = labels == c
        share, met = float(kept_N[of_C].mean()), EPOCHS * int(of_C.sum())
        by_class[c] = share
        if share < STARVED * mean - DEVIATIONS * math.sqrt(mean * (1 - mean) / met):
            starved[c] = float((copies.group_sizes[of_C] > 1).double().mean())
    return by_class, dict(sorted(starved.items(), key=lambda one: by_class[one[0]]))
