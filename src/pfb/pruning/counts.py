"""Which classes are kept, counted while training without waiting for the device.

Shape suffixes: N samples, K kept ones, C classes.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from pfb.utils.moments import may_wait

CLASSES = 65_536  # counted; labels beyond, and negative ones, are not
LEAST_MET = 64  # samples of a class, before it is called starved
LEAST_KEPT = 32  # that would be kept of it at the mean share, so that it is not by chance
STARVED = 1 / 3  # of the mean share kept
COPY = math.log(0.3)  # a sample whose weight is below so much of a lone one's looks like a copy


class Counts:
    """Kept and met samples by class, ``[C]`` int64 each, and the share that looked like copies."""

    def __init__(self) -> None:
        self._by_class: Tensor | None = None  # [2, C + 1]: kept, met; the last place takes no class
        self._like_copies: Tensor | None = None  # [N] bool: who looked like a copy in the latest batch
        self._warned = False

    def note(self, labels_N: Tensor | None, indices_K: Tensor, n: int) -> None:
        """Count the classes of a batch of n samples, int64 as :func:`labels_of` gives them."""
        if labels_N is None:
            return
        if self._by_class is None:
            self._by_class = torch.zeros(2, CLASSES + 1, dtype=torch.int64, device=labels_N.device)
        self._by_class = self._by_class.to(labels_N.device)
        place_N = torch.where((labels_N >= 0) & (labels_N < CLASSES), labels_N, CLASSES)
        one_N = torch.ones_like(place_N)
        self._by_class[1].index_add_(0, place_N, one_N)
        kept_K = indices_K.to(labels_N.device)
        self._by_class[0].index_add_(0, place_N.index_select(0, kept_K), one_N[: len(indices_K)])

    def note_weights(self, log_weights_N: Tensor | None, step: int) -> None:
        """Remember what share of a batch had a small weight; at calls 64, 128, 256, ... look at the
        classes and warn, once, of one that is starved.
        """
        if log_weights_N is not None:
            self._like_copies = log_weights_N < COPY
        if not self._warned and self._by_class is not None and may_wait(step + 1):
            self._warn_if_starved()

    def shares(self) -> dict[int, tuple[int, int]]:
        """Kept and met samples by class; waits for the device."""
        if self._by_class is None:
            return {}
        kept_C, met_C = self._by_class[:, :CLASSES].cpu()
        return {c: (int(kept_C[c]), int(met_C[c])) for c in met_C.nonzero()[:, 0].tolist()}

    def summary(self) -> dict[str, Any]:
        """``copy_share`` and ``kept_by_class``, as far as they are known."""
        found: dict[str, Any] = {}
        if self._like_copies is not None:
            found["copy_share"] = int(self._like_copies.sum()) / max(len(self._like_copies), 1)
        if shares := self.shares():
            found["kept_by_class"] = {c: kept / met for c, (kept, met) in shares.items()}
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"by_class": self._by_class}

    @classmethod
    def from_state(cls, state: Any) -> Counts:
        """As they were saved.

        Raises:
            ValueError: not a state of counts.
        """
        x = state.get("by_class") if isinstance(state, dict) else 0
        whole = isinstance(x, Tensor) and x.shape == (2, CLASSES + 1) and x.dtype == torch.int64
        if not (x is None or whole):
            raise ValueError("the state's `counts` must hold whole numbers [2, 65537] or None; it is damaged")
        counts = cls()
        counts._by_class = x.detach().clone() if isinstance(x, Tensor) else None
        return counts

    def _warn_if_starved(self) -> None:
        shares = {c: (kept, met) for c, (kept, met) in self.shares().items() if met >= LEAST_MET}
        met = sum(m for _, m in shares.values())
        if not met:
            return
        mean = sum(k for k, _ in shares.values()) / met
        starved = {
            c: kept / m for c, (kept, m) in shares.items() if kept / m < STARVED * mean and m * mean >= LEAST_KEPT
        }
        if starved:
            self._warned = True
            worst = min(starved, key=lambda c: starved[c])
            warnings.warn(
                f"pfb: of class {worst} only {starved[worst]:.0%} of the samples are kept, of all {mean:.0%}"
                + (f" (and {len(starved) - 1} further classes are as rare)" if len(starved) > 1 else "")
                + ". If they are no copies of each other, judge by something that tells them apart (`by=`, "
                "`features=`), or leave samples out at random: `rule=pfb.Uniform()`. `stats` has all shares.",
                stacklevel=5,
            )
