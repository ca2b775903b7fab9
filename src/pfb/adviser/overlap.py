"""Finding: what is tested on, and whether it repeats training or itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pfb.adviser.scan import Progress, Scan
from pfb.copies.near_duplicates import find_copies

LEAK = 0.01  # of the test samples, in training
ALIKE = 0.5  # of the share of near-copies in training: then the test repeats itself, too


@dataclass(frozen=True)
class Overlap:
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

    def repeats_itself(self, near: float) -> bool:
        """Whether it does so half as much as training, a share ``near`` of which has a copy."""
        return self.near_copies >= ALIKE * near > 0

    def repeats_training(self, near: float) -> bool:
        """Whether its copies are in training half as often."""
        return self.in_training >= ALIKE * near > 0

    @property
    def is_whole(self) -> bool:
        """Whether all of it was looked at."""
        return self.samples >= (self.total or 0)


def find(seen: Scan, test: Scan, progress: Progress) -> Overlap:
    """Compare a pass over the test with one over the training."""
    n, total = len(seen), len(seen) + len(test)
    copies = find_copies(
        torch.cat([seen.features, test.features]),
        own=None if seen.own is None or test.own is None else torch.cat([seen.own, test.own]),
        images=seen.kind == 0,
        exact=True,
        on_rows=lambda rows: progress("comparing samples with the test", rows, total),
    )
    in_training = {i for group in copies.groups if min(group) < n for i in group if i >= n}
    return Overlap(len(test), len(in_training) / len(test), float(copies.near[n:].double().mean()), test.total)


def say(found: Overlap) -> list[tuple[str, str]]:
    """Rows of the advice."""
    leak = ", which flatters its figures" if found.in_training >= LEAK else ""
    of_all = f"{found.samples:,}" if found.is_whole else f"{found.samples:,} of {found.total:,}"
    return [
        (
            "test",
            f"of {of_all} samples {found.in_training:.1%} have a near-copy in training{leak}; "
            f"{found.near_copies:.1%} there or in {'' if found.is_whole else 'this part of '}the test",
        )
    ]
