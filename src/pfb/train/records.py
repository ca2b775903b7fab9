"""What happened to each sample over the run: how often it was seen while pruning, kept, and how dense it lay last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Records:
    """Per-sample counts on the device; it has ``state_dict`` so that a resumed run keeps them.

    Attributes:
        seen, kept: ``[N]`` int64, steps in which the sample stood in a pruned batch, and went on.
        log_density: ``[N]`` float32, at the last time it did; NaN before.
    """

    def __init__(self, samples: int, device: torch.device) -> None:
        self.seen = torch.zeros(samples, dtype=torch.int64, device=device)
        self.kept = torch.zeros(samples, dtype=torch.int64, device=device)
        self.log_density = torch.full((samples,), torch.nan, device=device)

    def add(self, index: Tensor, kept_index: Tensor, log_density: Tensor | None) -> None:
        """Note one pruned batch: the data set's indices of all its samples and of those that went on."""
        self.seen.index_add_(0, index, torch.ones_like(index))
        self.kept.index_add_(0, kept_index, torch.ones_like(kept_index))
        if log_density is not None:
            self.log_density[index] = log_density

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "kept": self.kept, "log_density": self.log_density}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self.state_dict().items():
            value.copy_(state[name])
