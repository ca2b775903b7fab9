"""What an adviser found, in words, with the line to copy."""

from __future__ import annotations

from dataclasses import dataclass

from pfb.adviser import text as wording
from pfb.adviser.findings import Findings


@dataclass(frozen=True)
class Advice(Findings):
    """What :func:`pfb.advise` found; print it.

    Indices are what ``prepare`` said, or count samples in the order in which the loader gave them.

    Attributes:
        samples, total: samples looked at, and of the whole data set if the loader tells.
        batch_size: samples of a batch.
        device: where steps were timed.
        near_copies: share of the samples that another is a near-copy of.
        groups: indices of near-copies of each other that have the same label, the largest group
            first; in each, the one to keep first, and the others ascending.
        blockable: share of the samples that are not the first of their group and have at least 8
            near-copies, which a memory of a third of an epoch sees; without those that are equal to
            another of their group to the last bit.
        removable: share of the others that are not the first of their group.
        duplicates: indices of samples that are equal to the last bit, group by group.
        conflicts: groups of near-copies that hold several classes, to be looked at.
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
        judge_ratio: time that it takes to judge the samples of a batch, whole step = 1.
        memory: rows for :class:`pfb.NeighbourMemory`, by its rule.
        cut: the layer to attach at; ``None`` where ``pfb.attach`` finds it, or none was.
        noise: the gradient noise scale, or ...
        no_noise: ... why it was not measured.
        plan: what :func:`pfb.plan` measured, or ...
        no_plan: ... why it did not.
        tested: what the test has in common with training, if it was given.
        known_indices: whether indices are those of the data set: ``prepare`` said them, or the
            loader does not shuffle. Else they count samples in the order of this pass.
        own_features: whether samples were compared by features of the user's.
        mistaken: share of the samples that have no near-copy, but that a memory of neighbours takes
            for copies: a minority that is more alike than the rest or lies apart, or samples that
            differ in few dimensions.
    """

    @property
    def code(self) -> str:
        """The line to copy; empty where there is none."""
        if self.recommendation == "block":
            cut = f'cut="{self.cut}", ' if self.cut else ""
            rule = "importance=pfb.Uniform()"
            if not self.test_repeats_itself:
                features = "features=features, " if self.own_features else ""
                rule = f"{features}importance=pfb.InverseDensity(), estimator=pfb.NeighbourMemory({self.memory})"
            return f'pfb.attach(model, {cut}prune={self.prune:g}, shallow="recompute", {rule})'
        if self.recommendation == "remove" and self.known_indices:
            return "torch.utils.data.Subset(dataset, sorted({*range(len(dataset))} - {*advice.to_drop}))"
        return ""

    @property
    def headline(self) -> str:
        """What was looked at."""
        return wording.headline(self)

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """What was found, as a name and a text each."""
        return tuple(wording.rows(self))

    @property
    def recommended(self) -> str:
        """The recommendation in words."""
        return wording.RECOMMENDED[self.recommendation]

    @property
    def reason(self) -> str:
        """Why, and what to do."""
        return wording.REASONS[self.recommendation](self)

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows) + 2
        lines = [self.headline]
        lines += [f"  {name:{width}}{text}" for name, text in self.rows]
        lines += [f"Recommended: {self.recommended}. {self.reason}"]
        return "\n".join([*lines, f"  {self.code}"] if self.code else lines)
