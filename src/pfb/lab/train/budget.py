"""How long a command may train."""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator


class Budget:
    """Minutes, counted from when this is made; ``None`` for as long as it takes.

    Example:
        >>> budget = Budget(None, Accelerator(cpu=True))
        >>> budget.allows_another()
        True
    """

    def __init__(self, minutes: float | None, accelerator: Accelerator) -> None:
        self.minutes, self.accelerator = minutes, accelerator
        self._begin = self._last = time.monotonic()
        self._longest: float | None = None

    def epoch_ends(self) -> None:
        """Note how long an epoch took, with all that belongs to it."""
        now = time.monotonic()
        self._longest, self._last = max(self._longest or 0.0, now - self._last), now

    def epochs_begin(self) -> None:
        """What came before is no part of the first epoch."""
        self._last = time.monotonic()

    def allows_another(self) -> bool:
        """Whether one more epoch, as long as the longest so far, would end in time; a first one is
        always allowed. All processes call it, and the main one decides.
        """
        if self.minutes is None or self._longest is None:
            return True
        late = time.monotonic() + self._longest - self._begin > 60 * self.minutes
        decided = torch.tensor([late and self.accelerator.is_main_process], device=self.accelerator.device).int()
        return not bool(self.accelerator.reduce(decided, "sum"))
