"""The methods that a grid of trainings compares, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class GridMethod:
    """What one method changes in the common recipe."""

    settings: dict[str, Any] = field(default_factory=dict)
    early: bool = False
    """Cut after the first block of the stage, which must be several."""
    short: Literal["pfb", "uniform"] | None = None
    """Fewer epochs: full data at the compute of pfb in its better wiring, or of uniform blocking
    without a first pass.
    """


def _recompute(method: str, early: bool = False, **settings: Any) -> GridMethod:
    return GridMethod({"method": method, "shallow": "recompute", **settings}, early)


METHODS = {
    "full": GridMethod({"method": "full", "features": None}),
    "full-short": GridMethod({"method": "full", "features": None}, short="pfb"),
    "full-short-uniform": GridMethod({"method": "full", "features": None}, short="uniform"),
    "uniform-reuse": GridMethod({"method": "uniform", "shallow": "reuse"}),
    "uniform-recompute": _recompute("uniform"),
    "pfb-reuse": GridMethod({"method": "pfb", "shallow": "reuse"}),
    "pfb-recompute": _recompute("pfb"),
    "pfb-recompute-batch": _recompute("pfb", batchnorm="batch"),
    "inverse-density-recompute": _recompute("inverse-density"),
    "strict-recompute": _recompute("pfb", alpha=0.0),
    "tempered-recompute": _recompute("tempered"),
    "tempered-dense-recompute": _recompute("tempered", gamma=-0.5),
    "stratified-recompute": _recompute("stratified"),
    "stratified-per-class-recompute": _recompute("stratified", per_class=True),
    "pfb-recompute-half": _recompute("pfb", scoring_scale=0.5),
    "pfb-recompute-early": _recompute("pfb", early=True),
    "pfb-recompute-early-half": _recompute("pfb", early=True, scoring_scale=0.5),
    "pfb-per-class-recompute": _recompute("pfb", per_class=True),
    "uniform-per-class-recompute": _recompute("uniform", per_class=True),
    "two-level-recompute": _recompute("uniform", skip=0.2),  # skipping and blocking leave out the share together
    "release-reuse": GridMethod({"method": "release", "shallow": "reuse"}),
    "infobatch": GridMethod({"method": "infobatch"}),
    "orderdp": GridMethod({"method": "orderdp"}),
    "selective-backprop": GridMethod({"method": "selective-backprop"}),
}
UNIFORM = {"reuse": "uniform-reuse", "recompute": "uniform-recompute"}
"""The baseline of every method in a wiring."""
