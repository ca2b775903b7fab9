"""Warnings of what a first look at batches tells, each issued once."""

from __future__ import annotations

import warnings

from torch import Tensor

from pfb.selection.views import Views, undeclared

SMALL_BATCHES = 10  # so many in a row are no accident
MANY_BROKEN = 0.1  # of a batch


class FirstLook:
    """The warnings of one pruner or blocker.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     found = FirstLook()
        ...     for _ in range(20):
        ...         found.count(kept=2, of=2)
        >>> len(told)
        1
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._looked = False
        self._small = 0  # batches in a row of which all samples went on

    def warn(self, what: str, text: str) -> None:
        """Warn, once."""
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"pfb: {text}", stacklevel=2)

    def count(self, kept: int, of: int) -> None:
        """Warn if batches are always too small for any sample to be left out."""
        self._small = self._small + 1 if kept == of else 0
        if self._small == SMALL_BATCHES:
            self.warn(
                "small",
                f"{SMALL_BATCHES} batches in a row were too small to be pruned, the last of {of}: the share is rounded "
                "down to whole samples, and at least two are kept. Load more samples at once (with gradient "
                "accumulation: fewer, larger micro-batches).",
            )

    def look_at_features(self, rows_ND: Tensor, declared: Views) -> None:
        """For broken ones and for views; once, at the first pruned batch, since the host has to
        wait for it.
        """
        if self._looked:
            return
        self._looked = True
        broken = int((~rows_ND.isfinite().all(1)).sum())
        if broken > MANY_BROKEN * len(rows_ND):
            self.warn(
                "broken",
                f"{broken} of {len(rows_ND)} samples of the first batch hold NaN or infinity. Such samples are always "
                "kept, so that the loss shows them, and crowd the others out. If the model fills gaps itself, judge "
                "samples by what it fills them with: pass `features=`, a callable that returns finite [N, D].",
            )
        found = undeclared(rows_ND) if declared.count == 1 else None
        if found is not None:
            v, near = found.count, found.interleaved
            rows = f"{v} i and {v} i + 1" if near else f"i and i + N / {v}"
            views = f"pfb.{found!r}" if near else str(v)
            self.warn(
                "views",
                f"rows {rows} of the batch are alike as views of one sample would be, and each is stopped or kept "
                f"alone. If they belong together, say so: `views={views}`; otherwise ignore this warning.",
            )
