"""What an adviser found, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pfb.adviser.noise_scale import NoiseScale
from pfb.adviser.planner import Plan

Kind = Literal["block", "remove", "smaller-batch", "mend-loader", "nothing"]

WORTH_BLOCKING = 0.1  # of the samples
WORTH_REMOVING = 0.05
MOST_PRUNED = 0.5  # of a batch; beyond, copies are not all that is stopped
WORTH_TIME = 0.03  # of a step
WAITING = 0.5  # of the time, for the loader
LARGE_BATCH = 4.0  # times the noise scale
ALIKE = 0.5  # of the share of near-copies in training: then the test repeats itself, too
WORTH_TELLING = 0.03  # of the samples, that are stopped without being copies
NEARLY_ALL = 0.9  # of the data: then hardly a group is missed
SEEN_ROWS = 3  # of a group, in the memory: then its copies are seen


@dataclass(frozen=True)
class Tested:
    """What the test samples have in common with those of training.

    Attributes:
        samples: looked at.
        in_training: share that is a near-copy of a training sample.
        near_copies: share that is a near-copy of any sample, of the test or of training; of a part
            of the test, less than of all of it.
        total: of the whole test, if the loader tells.
    """

    samples: int
    in_training: float
    near_copies: float
    total: int | None = None


@dataclass(frozen=True)
class Findings:
    """What :class:`pfb.Advice` says of its attributes, and what follows from them."""

    samples: int
    total: int | None
    batch_size: int
    device: str
    near_copies: float
    groups: tuple[tuple[int, ...], ...]
    blockable: float
    removable: float
    duplicates: tuple[tuple[int, ...], ...]
    conflicts: tuple[tuple[int, ...], ...]
    classes: dict[int, int] | None
    in_runs: bool
    constant: tuple[int, ...]
    not_finite: tuple[int, ...]
    augmented: bool
    wait_seconds: float | None
    step_seconds: float
    prune: float
    kept_ratio: float
    memory: int
    cut: str | None = None
    noise: NoiseScale | None = None
    no_noise: str = ""
    plan: Plan | None = None
    no_plan: str = ""
    tested: Tested | None = None
    judge_ratio: float = 0.0
    known_indices: bool = True
    own_features: bool = False
    mistaken: float = 0.0

    @property
    def spare(self) -> float:
        """Share of the samples that could go if one of each group stayed."""
        return self.blockable + self.removable

    @property
    def to_drop(self) -> tuple[int, ...]:
        """Indices of all near-copies but the one to keep of each group, ascending."""
        return tuple(sorted(i for group in self.groups for i in group[1:]))

    @property
    def imbalance(self) -> float | None:
        """Samples of the rarest class as a part of those of the most frequent."""
        return min(self.classes.values()) / max(self.classes.values()) if self.classes else None

    @property
    def waiting(self) -> float:
        """Share of the time spent waiting for the loader; 0 where it was not measured."""
        wait = self.wait_seconds or 0.0
        return wait / (wait + self.step_seconds)

    @property
    def test_repeats_itself(self) -> bool:
        """Whether the test was looked at and repeats itself, or training, half as much as training
        does or more.
        """
        return self.tested is not None and self.tested.near_copies >= ALIKE * self.near_copies > 0

    @property
    def least_group(self) -> int | None:
        """Near-copies in a group of the whole data of which three were likely among the samples
        looked at; ``None`` if these were nearly all.
        """
        if self.total is None or self.samples >= NEARLY_ALL * self.total:
            return None
        return math.ceil(SEEN_ROWS * self.total / self.samples)

    @property
    def test_is_new(self) -> bool:
        """Whether all of the test was looked at and does not repeat itself as much."""
        seen = self.tested is not None and self.tested.samples == (self.tested.total or self.tested.samples)
        return seen and not self.test_repeats_itself

    @property
    def blocked_ratio(self) -> float:
        """Time of a step that stops samples, whole step = 1, with what it takes to judge them if
        that is not left to chance.
        """
        return self.kept_ratio + (0.0 if self.test_repeats_itself else self.judge_ratio)

    @property
    def repeats_enough(self) -> bool:
        """Whether blocking has something to spare."""
        return self.blockable >= WORTH_BLOCKING

    @property
    def stops_others(self) -> bool:
        """Whether many samples that are no near-copies would be stopped as if they were."""
        return self.mistaken >= WORTH_TELLING

    @property
    def blocking_is_shorter(self) -> bool:
        """Whether a step that stops samples takes less time."""
        return self.blocked_ratio <= 1 - WORTH_TIME

    @property
    def small_batch_is_shorter(self) -> bool:
        """Whether a step on fewer samples takes less time."""
        return self.kept_ratio <= 1 - WORTH_TIME

    @property
    def most_saved(self) -> float:
        """Share of the whole time that stopping ``prune`` of each batch could save at most; no more
        than that share, whatever small batches seem to gain.
        """
        return (1 - self.waiting) * min(self.prune, max(0.0, 1 - self.blocked_ratio))

    @property
    def recommendation(self) -> Kind:
        """``"block"``, ``"remove"`` (these copies, once), ``"smaller-batch"``, ``"mend-loader"``
        (first), or ``"nothing"`` (is to spare: train fewer epochs).
        """
        if self.not_finite or self.waiting >= WAITING:
            return "mend-loader"
        if self.repeats_enough and self.blocking_is_shorter and self.blockable >= self.removable:
            return "block"
        if self.removable >= WORTH_REMOVING:
            return "remove"
        if self._batch_is_large:
            return "smaller-batch"
        return "nothing"

    # Inside

    @property
    def _batch_is_large(self) -> bool:
        noise = self.noise
        if noise is None or noise.untrained is not False or self.batch_size < 2:
            return False
        return self.batch_size >= LARGE_BATCH * max(1.0, noise.samples) and self.small_batch_is_shorter
