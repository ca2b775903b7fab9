"""OrderDP (ICLR 2026): draw samples at random, keep those of them with the largest last loss."""

from __future__ import annotations

import torch
from torch import Tensor

from pfb.lab.baselines.loop import Loop
from pfb.selection.selection import keep_count


class OrderDP(Loop):
    """Per epoch, draw samples without replacement and load the part of them with the largest last
    loss; no weights.

    A sample that has not been trained on yet counts as one of largest loss.

    Args:
        samples: size of the training set.
        device: where losses come from.
        top: the part of the drawn samples that is loaded; the authors' release uses 0.85. Of n
            samples ``(1 - share) / top * n`` are drawn, so that exactly ``1 - share`` of all are
            loaded.
    """

    needs_one_process = True
    saved = ("losses",)

    def __init__(self, samples: int, device: torch.device | str = "cpu", top: float = 0.85) -> None:
        self.losses = torch.full((samples,), torch.inf, device=device)
        self.top = top

    def load(self, share: float, generator: torch.Generator) -> Tensor | None:
        if share == 0:
            return None
        n = len(self.losses)
        kept = keep_count(n, share)
        drawn = torch.randperm(n, generator=generator)[: max(kept, min(n, round(kept / self.top)))]
        return drawn[torch.topk(self.losses.cpu()[drawn], kept).indices]

    def reduce(self, losses: Tensor, index: Tensor) -> Tensor:
        self.losses[index] = losses.detach().float()
        return losses.mean()
