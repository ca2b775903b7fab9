"""Ways to take a pruned step, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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

    @property
    def scores(self) -> bool:
        """Whether the batch is judged: what figures compare."""
        return not isinstance(self.importance, pfb.Uniform)

    @property
    def scale(self) -> float:
        """Resolution of the scoring pass, as a part of the images'."""
        return self.shallow.scale if isinstance(self.shallow, pfb.Recompute) else 1.0

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
    "momentum": Variant(pfb.Recompute(), pfb.InverseDensity(), "momentum"),
    "uniform-recompute": Variant(pfb.Recompute(), pfb.Uniform()),
    "recompute": Variant(pfb.Recompute()),
    "recompute-half": Variant(pfb.Recompute(scale=0.5)),
    "reuse": Variant(pfb.Reuse()),
}
