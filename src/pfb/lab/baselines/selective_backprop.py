"""Selective backprop as Composer does it (Jiang et al., 2019, arXiv 1910.00762): train on samples
of large loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pfb.lab.baselines.loop import Criterion, Loop
from pfb.selection.selection import keep_count


class SelectiveBackprop(Loop):
    """In each batch, a forward without gradients gives every loss; high ones are likely to train.

    Composer's rule: the sample at percentile q of the batch's losses (lowest 0, highest 1) is drawn
    with a probability in proportion to ``q ** (1 / keep - 1)``, without replacement. The scoring
    forward runs in training mode, as there, so that BatchNorm's running statistics see each batch
    and then the chosen samples again.
    """

    @torch.no_grad()
    def choose(
        self, model: nn.Module, criterion: Criterion, image: Tensor, label: Tensor, share: float
    ) -> Tensor | None:
        if share == 0:
            return None
        losses = criterion(model(image), label)
        n, kept = len(losses), keep_count(len(losses), share)
        percentile = torch.empty_like(losses)
        percentile[losses.argsort()] = (torch.arange(n, device=losses.device, dtype=losses.dtype) + 0.5) / n
        probability = percentile ** (1 / (1 - share) - 1)
        return torch.multinomial(probability, kept, replacement=False).sort().values
