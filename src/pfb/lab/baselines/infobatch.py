"""InfoBatch (Qin et al., ICLR 2024, arXiv 2303.04947): skip some of the well-learned samples,
weight the others up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfb.lab.baselines.loop import Loop
from pfb.selection.selection import keep_count


class InfoBatch(Loop):
    """Per epoch, leave out a share r of the samples whose last loss lies below the mean; no sample
    is drawn twice.

    Of those below the mean the remaining ones get weight ``1 / (1 - r)``, which keeps the
    gradient's expectation. The share left out of all samples is therefore smaller than r: r times
    the part that lies below the mean. A sample that has not been trained on yet has no loss and is
    loaded.

    Args:
        samples: size of the training set.
        device: where losses come from.
    """

    needs_one_process = True
    saved = ("losses", "weights")

    def __init__(self, samples: int, device: torch.device | str = "cpu") -> None:
        self.losses = torch.full((samples,), torch.nan, device=device)
        self.weights = torch.ones(samples, device=device)

    def load(self, share: float, generator: torch.Generator) -> Tensor | None:
        self.weights.fill_(1.0)
        if share == 0:
            return None
        well_learned = torch.nonzero(self.losses < self.losses.nanmean()).flatten().cpu()
        order = torch.randperm(len(well_learned), generator=generator)
        skipped = well_learned[order[keep_count(len(well_learned), share) :]]
        self.weights[well_learned.to(self.weights.device)] = 1 / (1 - share)
        loaded = torch.ones(len(self.losses), dtype=torch.bool)
        loaded[skipped] = False
        return torch.nonzero(loaded).flatten()

    def reduce(self, losses: Tensor, index: Tensor) -> Tensor:
        self.losses[index] = losses.detach().float()
        return (losses * self.weights[index]).mean()
