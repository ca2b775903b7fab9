"""What happened to each sample over the run: how often it was seen while pruning, kept, and how
dense it lay last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class Records:
    """Per-sample counts on the device, equal on all processes after :meth:`merge`; a resumed run
    keeps them.

    Attributes:
        seen, kept: ``[N]`` int64, steps in which the sample stood in a pruned batch, and went on.
        log_density: ``[N]`` float32, at the last time it did; NaN before.
    """

    def __init__(self, samples: int, device: torch.device) -> None:
        self.seen = torch.zeros(samples, dtype=torch.int64, device=device)
        self.kept = torch.zeros_like(self.seen)
        self.log_density = torch.full((samples,), torch.nan, device=device)
        self._seen, self._kept = torch.zeros_like(self.seen), torch.zeros_like(self.seen)  # by this process, not merged
        self._log_density = self.log_density.clone()

    def add(self, index: Tensor, kept_index: Tensor, log_density: Tensor | None) -> None:
        """Note one pruned batch: the data set's indices of all its samples and of those that went
        on.
        """
        self._seen.index_add_(0, index, torch.ones_like(index))
        self._kept.index_add_(0, kept_index, torch.ones_like(kept_index))
        if log_density is not None:
            self._log_density[index] = log_density

    def merge(self, accelerator: Accelerator) -> None:
        """Add up what the processes noted since the last call; all of them call it, once
        per epoch.
        """
        seen, kept = accelerator.reduce(torch.stack([self._seen, self._kept]), "sum")
        known = self._log_density.isfinite().float()
        total, processes = accelerator.reduce(torch.stack([self._log_density.nan_to_num(0, 0, 0), known]), "sum")
        self.seen += seen
        self.kept += kept
        self.log_density = torch.where(processes > 0, total / processes.clamp_min(1), self.log_density)
        self._seen.zero_()
        self._kept.zero_()
        self._log_density.fill_(torch.nan)

    def table(self, labels: Tensor, files: list[str] | None = None) -> list[Sequence[Any]]:
        """Names, then a row per sample: its index, what is recorded of it, its class (where it has
        one for the whole), and its file (where it has one).
        """
        columns = [torch.arange(len(self.seen)), self.seen, self.kept, self.log_density]
        names = ["index", "seen", "kept", "log_density"]
        if labels.shape == self.seen.shape:
            columns, names = [*columns, labels], [*names, "label"]
        lists: list[list[Any]] = [column.tolist() for column in columns]
        if files is not None:
            lists, names = [*lists, files], [*names, "file"]
        return [names, *zip(*lists, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "kept": self.kept, "log_density": self.log_density}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self.state_dict().items():
            value.copy_(state[name])


def kept_share(records: dict[str, Tensor]) -> Tensor:
    """In which part of its pruned batches each sample of a run's saved records was kept; NaN where
    it stood in none.
    """
    seen = records["seen"].float()
    return torch.where(seen > 0, records["kept"] / seen.clamp_min(1), torch.nan)
