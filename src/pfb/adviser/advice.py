"""What was found, what follows from it, and the line to copy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pfb.adviser import near_copies, overlap, shares, step_time
from pfb.adviser.near_copies import DEFAULT_MEMORY, NearCopies
from pfb.adviser.overlap import Overlap
from pfb.adviser.shares import Shares
from pfb.adviser.step_time import WORTH_TIME, StepTime
from pfb.copies.acting import kept, weights

Kind = Literal["prune", "draw", "remove", "random", "fix-data", "nothing"]

WORTH_PRUNING = 0.1  # of the samples
WORTH_REMOVING = 0.05
MOSTLY = 0.5  # of what could be spared: then copies are equal, not near
USUAL_PRUNE, MOST_PRUNED = 0.5, 0.5  # of a batch; beyond, copies are not all that is left out
PARTS = 0.05  # shares are recommended in steps of this


@dataclass(frozen=True)
class Advice:
    """What :func:`pfb.advise` found; print it.

    Indices are what ``prepare`` said, or count samples in the order in which the loader gave them.

    Attributes:
        samples, total: samples looked at, and of the whole data set if the loader tells.
        batch_size: samples of a batch.
        prune: the share that is recommended, or was tried where none is.
        copies: near-copies and their groups.
        shares: whom the default keeps; ``None`` for fewer than 64 samples.
        steps: what a pruned step takes; ``None`` without a model.
        tested: what the test has in common with training, if it was given.
        own_features: whether samples were compared by features of the user's.
        not_finite: indices of samples that hold NaN or infinity, in input or labels.
        known_indices: whether indices are those of the data set.
        is_part: whether the loader's sampler gives a part of the data set only.
        size: samples of the data set, as far as they are known.
    """

    samples: int
    total: int | None
    batch_size: int
    prune: float
    copies: NearCopies
    shares: Shares | None = None
    steps: StepTime | None = None
    tested: Overlap | None = None
    own_features: bool = False
    not_finite: tuple[int, ...] = ()
    known_indices: bool = True
    is_part: bool = False
    size: int = 0

    # The findings that are asked for most

    @property
    def near_copies(self) -> float:
        """Share of the samples that another is a near-copy of."""
        return self.copies.near

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Indices of near-copies of each other, the one to keep first; the largest group first."""
        return self.copies.groups

    @property
    def spare(self) -> float:
        """Share of the samples that could go if one of each group stayed."""
        return self.copies.spare

    # What to do

    @property
    def keep(self) -> list[int]:
        """Indices of all samples of the data set but the surplus of each group and label,
        ascending, for ``Subset``.
        """
        return kept(self.copies.parts, self.size).tolist()

    @property
    def weights(self) -> list[float]:
        """For each sample of the data set 1 / (how many of its group have its label), for
        ``WeightedRandomSampler``.
        """
        return weights(self.copies.parts, self.size).tolist()

    @property
    def test_repeats_itself(self) -> bool:
        """Whether the test was looked at and repeats itself, or training, half as much as training
        does or more.
        """
        return self.tested is not None and self.tested.repeats_itself(self.near_copies)

    @property
    def saved(self) -> float | None:
        """Share of the time of training that pruning ``prune`` of each batch saves, no more than
        that share; ``None`` without a model.
        """
        if self.steps is None:
            return None
        ratio = self.steps.kept.median if self.test_repeats_itself else self.steps.ratio
        return (1 - (self.steps.loading or 0.0)) * min(self.prune, max(0.0, 1 - ratio))

    @property
    def recommendation(self) -> Kind:
        """``"prune"`` (in the batch), ``"draw"`` (copies less often), ``"remove"`` (them, once),
        ``"random"`` (leave out any), ``"fix-data"`` (first), or ``"nothing"``.
        """
        if self.not_finite:
            return "fix-data"
        if self.spare < WORTH_REMOVING:
            return "nothing"
        copies, spares_nothing = self.copies, self._steps_as_long
        if self.test_repeats_itself and not (copies.shade and self._is_seen and self._test_repeats_training):
            return "nothing" if spares_nothing else "random"
        if self._is_seen and (copies.shade or self.total is None):
            if not self._can_draw:
                shorter = self.steps is None or not (self.steps.waits or self.steps.is_shorter is False)
                return "prune" if shorter else "nothing"
            return "draw" if not spares_nothing or (self.steps is not None and self.steps.waits) else "nothing"
        if copies.shade and copies.equal < MOSTLY * self.spare:
            return "nothing" if spares_nothing else "random"
        return "nothing" if self.total is None else "remove"

    @property
    def code(self) -> str:
        """The line to copy; empty where there is none."""
        return self.codes.get(self.recommendation, "")

    @property
    def codes(self) -> dict[str, str]:
        """The line for each way to act that is open."""
        features = ", features=features" if self.own_features else ""
        memory = "" if self.copies.memory <= DEFAULT_MEMORY else f", density=pfb.NeighbourMemory({self.copies.memory})"
        found = {"random": f"loader = pfb.prune_batches(loader, prune={self.prune:g}, rule=pfb.Uniform())"}
        if self._is_seen:
            found["prune"] = f"loader = pfb.prune_batches(loader, prune={self.prune:g}{features}{memory})"
        if self.copies.shade and self._can_draw:
            given = f"{self.total}, batch_size={self.batch_size}, prune={self.prune:g}"
            found["draw"] = f"sampler = pfb.CopyBatchSampler({given})  # see docs/copies.md"
        if self.known_indices and self.groups:
            drawn = round(sum(self.weights))
            found.setdefault("draw", f"sampler = torch.utils.data.WeightedRandomSampler(advice.weights, {drawn})")
            found["remove"] = "dataset = torch.utils.data.Subset(dataset, advice.keep)"
        return found

    # In words

    @property
    def headline(self) -> str:
        """What was looked at."""
        of_all = f" of {self.total:,}" if self.total is not None else ""
        where = f", on {self.steps.device}" if self.steps is not None else ""
        return f"{self.samples:,}{of_all} samples looked at, in batches of {self.batch_size}{where}."

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """What was found, as a name and a text each; without a name where the row goes on."""
        rows = near_copies.say(self.copies)
        rows += [] if self.tested is None else overlap.say(self.tested)
        rows += [] if self.shares is None else shares.say(self.shares)
        rows += [("steps", "not timed: pass the model")] if self.steps is None else step_time.say(self.steps)
        return tuple(rows)

    @property
    def recommended(self) -> str:
        """The recommendation in words."""
        return RECOMMENDED[self.recommendation][0]

    @property
    def reason(self) -> str:
        """Why, and what to do."""
        return RECOMMENDED[self.recommendation][1](self)

    @property
    def others(self) -> tuple[tuple[str, str], ...]:
        """The other ways to act on the same copies, with the line of each."""
        if self.recommendation not in ("prune", "draw", "remove"):
            return ()
        ways: tuple[Kind, ...] = ("prune", "draw") if self.copies.shade else ("prune", "draw", "remove")
        others = (way for way in ways if way != self.recommendation and way in self.codes)
        return tuple((RECOMMENDED[way][0], self.codes[way]) for way in others)

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows) + 2
        lines = [self.headline]
        lines += [f"  {name:{width}}{text}" for name, text in self.rows]
        lines += [f"Recommended: {self.recommended}. {self.reason}"]
        lines += [f"  {self.code}"] if self.code else []
        lines += [f"Or {way}: {code}" for way, code in self.others]
        return "\n".join(lines)

    # Inside

    @property
    def _is_seen(self) -> bool:
        """Whether most copies are in groups that the memory sees."""
        return self.copies.seen >= max(WORTH_PRUNING, self.copies.few)

    @property
    def _can_draw(self) -> bool:
        """Whether :class:`pfb.CopyBatchSampler` can draw from the data: it takes all of a data set,
        and no features of the user's.
        """
        return self.total is not None and not self.is_part and not self.own_features

    @property
    def _steps_as_long(self) -> bool:
        """Whether a step on fewer samples takes as long, even without a choice."""
        return self.steps is not None and self.steps.kept.median > 1 - WORTH_TIME

    @property
    def _test_repeats_training(self) -> bool:
        return self.tested is not None and self.tested.repeats_training(self.near_copies)

    def _prune(self) -> str:
        saves = "" if self.saved is None else f", and saves {self.saved:.0%} of the time of a training"
        if self.steps is not None and self.steps.is_shorter is None:
            saves = " (whether that saves time here cannot be told)"
        return (
            f"{self._seen}. Leaving out {self.prune:.0%} of each batch drops mostly these, each still comes by now and "
            f"then{saves}. {self._if_tested}{self._starved()}"
        )

    def _draw(self) -> str:
        return (
            f"{self._seen}. Pruned in the first epoch only, they are hardly loaded in later ones, and none is lost "
            f"for good. {self._if_tested}{self._starved()}"
        )

    @property
    def _seen(self) -> str:
        why = ", and shade into the rest, so that one of each would be too little" if self.copies.shade else ""
        return (
            f"{self.copies.seen:.0%} of the samples repeat others in groups large enough to be seen while training{why}"
        )

    @property
    def _if_tested(self) -> str:
        """For whom leaving out copies pays."""
        if self._test_repeats_training:
            return "What you test on repeats training, too: new and rare things gain, the average of all hardly does."
        if self.tested is not None and self.tested.is_whole:
            return "What you test on does not repeat itself as much, which is where it pays."
        return "If what you test on repeats itself, but nothing of training, random is as good."

    def _remove(self) -> str:
        clear = "" if self.copies.shade else ", and copies are told apart from the rest clearly"
        equal = f"{self.copies.equal:.0%} are equal to others to the last bit. " if self.copies.equal else ""
        return (
            f"{self.spare:.0%} of the samples could be spared{clear}. {equal}What is removed is not loaded again, and "
            f"every epoch is shorter. Data that grow or come as a stream: prune in the batch.{self._to_be_told_which()}"
        )

    def _random(self) -> str:
        saves = "" if self.saved is None else f", which saves {self.saved:.0%} of the time"
        why = (
            "what you test on repeats itself, too, where"
            if self.test_repeats_itself
            else f"copies shade into the rest ({self.copies.unclear:.0%} are neither), in small groups, where"
        )
        gained = f"sparing copies was no better than chance{saves}"
        return f"{self.spare:.0%} of the samples could be spared, but {why} {gained}."

    def _fix(self) -> str:
        count = len(self.not_finite)
        shown = ", ".join(map(str, self.not_finite[:5])) + (", ..." if count > 5 else "")
        which = "indices" if self.known_indices else "in the order of this pass"
        return (
            f"NaN or infinity is in {count:,} sample{'s' if count > 1 else ''} ({which} {shown}), and one is enough to "
            "spoil the weights: repair or drop them."
        )

    def _nothing(self) -> str:
        if self.spare >= WORTH_REMOVING:
            return (
                f"{self.spare:.0%} of the samples could be spared, but not while training: copies come in groups too "
                "small to be seen, or loading or a step on fewer samples takes as long here. Train fewer epochs."
            )
        return (
            f"{self.spare:.1%} of the samples could be spared: to spend less, train fewer epochs. On data that do not "
            "repeat themselves that is as good as any choice of samples. In so many epochs that they are learned by "
            "heart, leaving samples out at random was better: rule=pfb.Uniform()."
        )

    def _starved(self) -> str:
        if self.shares is None or not self.shares.starved:
            return ""
        return (
            ' But some classes are kept far less than others (row "warning"): if they are no copies of each other, '
            "pass `features=` that tell them apart, or leave samples out at random, rule=pfb.Uniform()."
        )

    def _to_be_told_which(self) -> str:
        if self.known_indices:
            part = self.total is not None and self.samples < self.total
            return f" These were found in a part of the data: look at all, samples={self.total}." if part else ""
        return (
            " The loader shuffles, so that indices only count its order: look again with shuffle=False, or return the "
            "index of each sample from `prepare=`, to be told which."
        )


RECOMMENDED: dict[Kind, tuple[str, Callable[[Advice], str]]] = {
    "prune": ("prune in the batch", Advice._prune),
    "draw": ("draw copies less often", Advice._draw),
    "remove": ("remove these copies once", Advice._remove),
    "random": ("leave samples out at random", Advice._random),
    "fix-data": ("repair the data first", Advice._fix),
    "nothing": ("nothing to spare", Advice._nothing),
}
"""What to do, in words, and why."""


def share_to_prune(seen: float) -> float:
    """The share to recommend where so many samples are copies that a memory sees."""
    if seen < WORTH_PRUNING:
        return USUAL_PRUNE
    return round(min(MOST_PRUNED, math.floor(seen / PARTS + 1e-9) * PARTS), 2)
