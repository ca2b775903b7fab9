"""Finding: samples with NaN or infinity, constant or equal to the last bit; rare classes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch

from pfb.adviser.scan import Scan

SORTED = 0.5  # of the changes of class that a random order has


@dataclass(frozen=True)
class Flaws:
    """What single samples and their labels show.

    Attributes:
        not_finite: indices of samples that hold NaN or infinity, in input or labels.
        constant: indices of samples whose values are all the same.
        duplicates: indices of samples that are equal to the last bit, group by group, the largest
            first.
        conflicts: how many of these groups hold several classes.
        classes: samples of each class, if the labels are classes.
        in_runs: whether samples of one class follow each other: the loader does not shuffle.
        known_indices: whether indices are those of the data set.
    """

    not_finite: tuple[int, ...]
    constant: tuple[int, ...]
    duplicates: tuple[tuple[int, ...], ...]
    conflicts: int
    classes: dict[int, int] | None
    in_runs: bool
    known_indices: bool = True

    @property
    def imbalance(self) -> float | None:
        """Samples of the rarest class as a part of those of the most frequent."""
        return min(self.classes.values()) / max(self.classes.values()) if self.classes else None


def find(seen: Scan) -> Flaws:
    """Look at all samples that a pass saw."""
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for place, digest in enumerate(seen.digests):
        by_digest[digest].append(place)
    equal = sorted((same for same in by_digest.values() if len(same) > 1), key=lambda same: (-len(same), same))
    labels = None if seen.labels is None else seen.labels.tolist()
    conflicts, classes = 0, None
    if seen.labels is not None and labels is not None:
        conflicts = sum(len({labels[i] for i in same}) > 1 for same in equal)
        values, counts = torch.unique(seen.labels, return_counts=True)
        classes = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return Flaws(
        seen.numbered(seen.not_finite),
        seen.numbered(seen.constant),
        tuple(seen.numbered(same) for same in equal),
        conflicts,
        classes,
        _in_runs(seen),
        seen.known_indices,
    )


def say(found: Flaws) -> list[tuple[str, str]]:
    """Rows of the advice."""
    rows = [("duplicates", "none is equal to another to the last bit")]
    if found.duplicates:
        several = f", {found.conflicts} of them with different labels" if found.conflicts else ""
        count, groups = sum(map(len, found.duplicates)), len(found.duplicates)
        many = f"{groups:,} group{'s' if groups > 1 else ''}"
        rows = [("duplicates", f"{count:,} samples in {many} equal to the last bit{several}")]
    if found.classes:
        runs = "; samples of one class follow each other: shuffle for training" if found.in_runs else ""
        rows.append(
            ("classes", f"{len(found.classes)}, the rarest has {found.imbalance:.2f} of the most frequent{runs}")
        )
    some = [
        f"{len(places):,} {what} ({_shown(places)})"
        for what, places in (("constant", found.constant), ("with NaN or infinity", found.not_finite))
        if places
    ]
    return [*rows, ("broken", "; ".join(some) or "none is constant, NaN or infinite")]


def _shown(places: tuple[int, ...]) -> str:
    return ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else "")


def _in_runs(seen: Scan) -> bool:
    """Whether samples of one class follow each other far more often than in a random order."""
    if seen.labels is None or len(seen.labels) < 2:
        return False
    shares = torch.unique(seen.labels, return_counts=True)[1] / len(seen.labels)
    changes = float((seen.labels.diff() != 0).float().mean())
    return changes < SORTED * float(1 - shares.square().sum())
