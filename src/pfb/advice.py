"""What an adviser found, in words, and the one thing it recommends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pfb.noise_scale import NoiseScale
from pfb.planner import Plan

Kind = Literal["block", "remove", "smaller-batch", "mend-loader", "nothing"]

WORTH_BLOCKING = 0.1  # of the samples
WORTH_REMOVING = 0.05
MOST_PRUNED = 0.5  # of a batch; beyond, copies are not all that is stopped
WORTH_TIME = 0.03  # of a step
WAITING = 0.5  # of the time, for the loader
LARGE_BATCH = 4.0  # times the noise scale
ALIKE = 0.5  # of the share of near-copies in training: then the test repeats itself, too
LEAK = 0.01  # of the test samples, in training
SEEN_ROWS = 3  # of a group, in the memory: then its copies are seen


@dataclass(frozen=True)
class Tested:
    """What the test samples have in common with those of training.

    Attributes:
        samples: looked at.
        in_training: share that is a near-copy of a training sample.
        near_copies: share that is a near-copy of any sample, of the test or of training.
    """

    samples: int
    in_training: float
    near_copies: float


@dataclass(frozen=True)
class Advice:
    """What :func:`pfb.advise` found; print it.

    Indices count samples in the order in which the loader gave them, or are what ``prepare`` said.

    Attributes:
        samples, total: samples looked at, and of the whole data set if the loader tells.
        batch_size: samples of a batch.
        device: where steps were timed.
        near_copies: share of the samples that another is a near-copy of.
        groups: indices of near-copies of each other, the largest group first; in each, the one to
            keep first, and the others ascending.
        blockable: share of the samples that are not the first of their group and have at least 8
            near-copies, which a memory of a third of an epoch sees; without those that are equal to
            another of their group to the last bit.
        removable: share of the others that are not the first of their group.
        duplicates: indices of samples that are equal to the last bit, group by group.
        conflicts: how many of these groups hold several classes.
        classes: samples of each class, if the labels are classes.
        in_runs: whether samples of one class follow each other: the loader does not shuffle.
        constant: indices of samples whose values are all the same.
        not_finite: indices of samples that hold NaN or infinity.
        augmented: whether the loader gives a sample differently each time, so that its copies are
            told less well.
        wait_seconds: what training would wait for each batch, beside steps of this device; ``None``
            if it was not measured.
        step_seconds: a training step on a whole batch.
        prune: the share that is recommended, or was looked at where none is.
        kept_ratio: time of a step on the rest, whole step = 1.
        memory: rows for :class:`pfb.NeighbourMemory`, by its rule.
        cut: the layer to attach at; ``None`` where ``pfb.attach`` finds it, or none was.
        noise: the gradient noise scale, or ...
        no_noise: ... why it was not measured.
        plan: what :func:`pfb.plan` measured, or ...
        no_plan: ... why it did not.
        tested: what the test has in common with training, if it was given.
    """

    samples: int
    total: int | None
    batch_size: int
    device: str
    near_copies: float
    groups: tuple[tuple[int, ...], ...]
    blockable: float
    removable: float
    duplicates: tuple[tuple[int, ...], ...]
    conflicts: int
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
    def blocked_ratio(self) -> float:
        """Time of a step that stops samples, whole step = 1: with the time it takes to judge them,
        if that was planned and is not left to chance.
        """
        sketch = None if self.plan is None or self.test_repeats_itself else self.plan.sketch
        return self.kept_ratio if sketch is None else max(self.kept_ratio, sketch.step_ratio)

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
        blocks = self.blockable >= WORTH_BLOCKING and self.blocked_ratio <= 1 - WORTH_TIME
        if blocks and self.blockable >= self.removable:
            return "block"
        if self.removable >= WORTH_REMOVING:
            return "remove"
        if self._batch_is_large():
            return "smaller-batch"
        return "nothing"

    @property
    def reason(self) -> str:
        """Why, and what to do."""
        return getattr(self, f"_why_{self.recommendation.replace('-', '_')}")()  # type: ignore[no-any-return]

    @property
    def code(self) -> str:
        """The line to copy; empty where there is none."""
        if self.recommendation == "block":
            cut = f'cut="{self.cut}", ' if self.cut else ""
            rule = "importance=pfb.Uniform()"
            if not self.test_repeats_itself:
                rule = f"importance=pfb.InverseDensity(), estimator=pfb.NeighbourMemory({self.memory})"
            return f'pfb.attach(model, {cut}prune={self.prune:g}, shallow="recompute", {rule})'
        if self.recommendation == "remove":
            return "torch.utils.data.Subset(dataset, sorted({*range(len(dataset))} - {*advice.to_drop}))"
        return ""

    @property
    def headline(self) -> str:
        """What was looked at."""
        of_all = f" of {self.total:,}" if self.total is not None else ""
        return f"{self.samples:,}{of_all} samples looked at, in batches of {self.batch_size}, on {self.device}."

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """What was found, as a name and a text each."""
        return tuple(self._rows())

    @property
    def recommended(self) -> str:
        """The recommendation in words."""
        return WORDS[self.recommendation]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows) + 2
        lines = [self.headline]
        lines += [f"  {name:{width}}{text}" for name, text in self.rows]
        lines += [f"Recommended: {self.recommended}. {self.reason}"]
        return "\n".join([*lines, f"  {self.code}"] if self.code else lines)

    # Inside

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "near-copies", self._of_copies()
        if self.duplicates:
            several = f", {self.conflicts} of them with different labels" if self.conflicts else ""
            count = sum(map(len, self.duplicates))
            yield (
                "duplicates",
                f"{count:,} samples in {_many(len(self.duplicates), 'group')} equal to the last bit{several}",
            )
        else:
            yield "duplicates", "none is equal to another to the last bit"
        if self.tested is not None:
            leak = ", which flatters its figures" if self.tested.in_training >= LEAK else ""
            yield (
                "test",
                f"of {self.tested.samples:,} samples {self.tested.in_training:.1%} have a near-copy in training{leak}; "
                f"{self.tested.near_copies:.1%} there or in the test",
            )
        if self.classes:
            runs = "; classes come in runs: shuffle for training" if self.in_runs else ""
            yield "classes", f"{len(self.classes)}, the rarest has {self.imbalance:.2f} of the most frequent{runs}"
        broken = [f"{len(self.constant):,} constant", f"{len(self.not_finite):,} with NaN or infinity"]
        yield "broken", ", ".join(broken) if self.constant or self.not_finite else "none is constant, NaN or infinite"
        step = f"a step takes {_seconds(self.step_seconds)}"
        if self.wait_seconds is None:
            yield "loader", f"{step}; waiting not measured, there was only one batch"
        else:
            wait = _seconds(self.wait_seconds)
            yield "loader", f"{step} after waiting {wait} for its batch: {self.waiting:.0%} of the time"
        yield (
            "blocking",
            f"a step with {self.prune:.0%} stopped takes {self.kept_ratio:.2f} of a whole one; "
            f"saves at most {self.most_saved:.0%} of the time",
        )
        yield "noise scale", self._of_noise()
        if self.plan is not None:
            if (sketch := self.plan.sketch) is not None:
                yield "plan", f"judged by a sketch of the input, as by default, it takes {sketch.step_ratio:.2f}"
            best = self.plan.recommended
            ratio = min(best.reuse.step_ratio, best.recompute.step_ratio)
            yield "plan", f"judged by features of the cut {best.cut!r}, {best.shallow}, it takes {ratio:.2f}"
        elif self.no_plan:
            yield "plan", f"not made: {self.no_plan}"

    def _of_copies(self) -> str:
        text = f"{self.near_copies:.1%} of the samples have one"
        if self.groups:
            sizes = ", ".join(str(len(group)) for group in self.groups[:3])
            text += f", in {_many(len(self.groups), 'group')} (largest: {sizes}); {self.spare:.1%} could be spared"
        if self.total is not None and self.samples < self.total:
            least = math.ceil(SEEN_ROWS * self.total / self.samples)
            text += f". Of a part of the data, groups of fewer than about {least:,} are not seen"
        if self.augmented:
            text += ". Inputs are augmented, which hides some: look again without"
        return text

    def _of_noise(self) -> str:
        if self.noise is None:
            return f"not measured: {self.no_noise}"
        lost = not math.isfinite(self.noise.samples) or self.noise.samples > self.noise.seen
        size = f"more than {self.noise.seen:,}" if lost else f"about {max(1, round(self.noise.samples)):,}"
        text = f"{size} samples at these weights, the batch has {self.batch_size}"
        return text + (" (untrained weights: it grows a lot in training)" if self.noise.untrained else "")

    def _batch_is_large(self) -> bool:
        noise = self.noise
        if noise is None or noise.untrained or self.batch_size < 2:
            return False
        return self.batch_size >= LARGE_BATCH * max(1.0, noise.samples) and self.kept_ratio <= 1 - WORTH_TIME

    def _why_block(self) -> str:
        also = f" Another {self.removable:.0%} are few or equal copies: remove those." if self.removable >= 0.01 else ""
        return (
            f"{self.blockable:.0%} of the samples repeat others in groups large enough to be seen while training. "
            f"Stopping {self.prune:.0%} of each batch saves up to {self.most_saved:.0%} of the time, "
            f"{self._which()}{also}"
        )

    def _which(self) -> str:
        if self.test_repeats_itself:
            return "at random: what you test on repeats itself, too, where to spare copies was no better than chance."
        known = "mostly on these, and each still comes by now and then."
        if self.tested is not None:
            return f"{known} What you test on does not repeat itself as much, which is where it pays."
        return f"{known} If what you test on repeats itself as much, stop at random: importance=pfb.Uniform()."

    def _why_remove(self) -> str:
        idle = self.blockable >= WORTH_BLOCKING and self.blocked_ratio > 1 - WORTH_TIME
        return (
            f"{self.removable:.0%} of the samples are equal to others, or copies too few for blocking to see: drop "
            "what `advice.to_drop` lists, and every epoch is shorter at once"
            + (f", which blocking would not be: on this device {self._idle_because()}." if idle else ".")
        )

    def _idle_because(self) -> str:
        if self.kept_ratio > 1 - WORTH_TIME:
            return "a step on fewer samples takes as long as one on all"
        return f"a pruned step of so small a model takes {self.blocked_ratio:.2f} of a whole one, with what judges it"

    def _why_smaller_batch(self) -> str:
        assert self.noise is not None
        better = 2 ** max(0, math.ceil(math.log2(max(1.0, self.noise.samples))))
        return (
            f"{self.spare:.1%} of the samples could be spared, but a batch of {self.batch_size} is "
            f"{self.batch_size / max(1.0, self.noise.samples):.0f} times the gradient noise scale, where more samples "
            f"hardly better a step: try {better} with as many steps, and a learning rate to match."
        )

    def _why_mend_loader(self) -> str:
        if self.not_finite:
            shown = ", ".join(map(str, self.not_finite[:5])) + (", ..." if len(self.not_finite) > 5 else "")
            return (
                f"NaN or infinity is in {_many(len(self.not_finite), 'sample')} (indices {shown}), and one is enough "
                "to spoil the weights: repair or drop them."
            )
        copies = f" Copies need not be loaded: {self.spare:.0%} could go." if self.spare >= WORTH_REMOVING else ""
        return (
            f"{self.waiting:.0%} of the time is spent waiting for data, where blocking saves nothing (at most "
            f"{self.most_saved:.0%} of the whole): use more workers, faster decoding or smaller files.{copies}"
        )

    def _why_nothing(self) -> str:
        if self.blockable >= WORTH_BLOCKING:
            return (
                f"{self.blockable:.0%} of the samples repeat others, but on this device {self._idle_because()}: try a "
                "larger batch, then ask again. Else train fewer epochs."
            )
        return (
            f"{self.spare:.1%} of the samples could be spared: to spend less, train fewer epochs. On data that do not "
            "repeat themselves that is as good as any choice of samples."
        )


WORDS: dict[Kind, str] = {
    "block": "block",
    "remove": "remove these copies once",
    "smaller-batch": "use a smaller batch",
    "mend-loader": "mend the loader first",
    "nothing": "nothing to spare",
}


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
