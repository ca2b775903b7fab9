"""Ways to take a pruned step, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import pfb


@dataclass(frozen=True)
class Variant:
    """One way to take a pruned step."""

    shallow: pfb.Reuse | pfb.Recompute
    importance: Callable[..., Tensor] = field(default_factory=pfb.RareFirst)
    """The paper's rule, where none is named."""
    features: str | None = None
    """What the samples are judged by, where it is not what the rule takes by default."""
    early: bool = False
    """Cut after the first block of the stage."""
    filled: bool = False
    """As many samples that the kept ones are a full batch."""

    @property
    def scores(self) -> bool:
        """Whether the batch is judged, and pruned as it is: what figures compare."""
        return not isinstance(self.importance, pfb.Uniform) and not self.filled

    @property
    def scale(self) -> float:
        """Resolution of the scoring pass, as a part of the images'."""
        return self.shallow.scale if isinstance(self.shallow, pfb.Recompute) else 1.0

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the scoring pass, where it is not that of training."""
        return self.shallow.dtype if isinstance(self.shallow, pfb.Recompute) else None

    def attach(self, cut: str | None, prune: float) -> dict[str, Any]:
        """Arguments of ``pfb.attach``."""
        return {
            "cut": cut,
            "prune": prune,
            "shallow": self.shallow,
            "importance": self.importance,
            "features": self.features,
        }


VARIANTS = {
    "sketch": Variant(pfb.Recompute(), pfb.InverseDensity()),
    "sketch-reuse": Variant(pfb.Reuse(), pfb.InverseDensity()),
    "momentum": Variant(pfb.Recompute(), pfb.InverseDensity(), "momentum"),
    "reuse": Variant(pfb.Reuse()),
    "recompute": Variant(pfb.Recompute()),
    "recompute-half": Variant(pfb.Recompute(scale=0.5)),
    "recompute-bf16": Variant(pfb.Recompute(dtype=torch.bfloat16)),
    "recompute-early": Variant(pfb.Recompute(), early=True),
    "recompute-early-half": Variant(pfb.Recompute(scale=0.5), early=True),
    "recompute-filled": Variant(pfb.Recompute(), filled=True),
    "uniform-reuse": Variant(pfb.Reuse(), pfb.Uniform()),
    "uniform-recompute": Variant(pfb.Recompute(), pfb.Uniform()),
}
