"""Ways to take a pruned step, by the names that ``pfb train --method`` has for them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

import pfb

Tool = pfb.BatchPruner | pfb.Blocker


def _paper_before(model: nn.Module, cut: str | None, prune: float) -> Tool:
    return pfb.BatchPruner(prune, features=pfb.Shallow(model, cut), rule=pfb.RareFirst())


VARIANTS: dict[str, Callable[[nn.Module, str | None, float], Tool]] = {
    "copies": lambda model, cut, prune: pfb.BatchPruner(prune),
    "uniform": lambda model, cut, prune: pfb.BatchPruner(prune, rule=pfb.Uniform()),
    "paper": lambda model, cut, prune: pfb.attach(model, cut, prune),
    "paper-before": _paper_before,
}
"""What prunes the batches of a model, with a share: before it, or inside it after the cut."""
