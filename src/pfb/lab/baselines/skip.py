"""Two levels: leave samples out of an epoch at random before others are stopped inside the
model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfb.lab.baselines.method import Method
from pfb.selection.selection import keep_count


class Skip(Method):
    """Per epoch in which anything is pruned, a share of the samples is not loaded, drawn anew and
    without replacement.

    What is not loaded costs nothing at all, also no loading and no optimizer step; blocking inside
    the model decides among the rest. Of n samples ``n - floor(skip * n)`` are loaded.

    Args:
        samples: size of the training set.
        skip: share that is not loaded.
    """

    def __init__(self, samples: int, skip: float) -> None:
        self.samples, self.skip = samples, skip

    @property
    def loaded(self) -> int:
        """How many samples an epoch loads in which anything is pruned."""
        return keep_count(self.samples, self.skip)

    def load(self, share: float, generator: torch.Generator) -> Tensor | None:
        if share == 0:
            return None
        return torch.randperm(self.samples, generator=generator)[: self.loaded]
