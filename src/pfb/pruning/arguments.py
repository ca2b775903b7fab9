"""What a user hands over: densities and features, checked at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pfb.density.kernels import Density
from pfb.density.moving_centers import MovingCenters
from pfb.density.neighbours import NeighbourMemory
from pfb.features.base import Features, FromFunction
from pfb.features.sketch import Sketch
from pfb.selection.rules import InverseDensity, Rule


def checked_density(density: Density | None, rule: Rule) -> Density:
    """What a user gave as ``density=``, or the rule's own.

    Raises:
        TypeError: it lacks what a density has, or is a class.
    """
    local = isinstance(rule, InverseDensity)
    if density is None:
        return NeighbourMemory() if local else MovingCenters()
    wanted = {"collects", "ready", "accumulate", "apply", "summary", "state_dict", "load_state_dict"}
    wanted |= {"near_copies" if local else "log_density"}
    lacks = sorted(name for name in wanted if not hasattr(density, name))
    if lacks or isinstance(density, type):
        other = "" if local else " or `pfb.MovingCenters()`"
        raise TypeError(
            f"`density` must be one such as `pfb.NeighbourMemory(4096)`{other} (got {density!r}"
            + (f", which has no {', '.join(lacks)})" if lacks else ", a class: write `()` after it)")
        )
    return density


def checked_features(features: Features | Callable[[Any], Tensor] | None) -> Features:
    """What a user gave as ``features=``.

    Raises:
        TypeError: no function, or a class instead of one of its objects.
    """
    if features is None:
        return Sketch()
    if isinstance(features, Features):
        return features
    if isinstance(features, type) or not callable(features):
        raise TypeError(
            "`features` must be pfb.Sketch(), pfb.Shallow(model) or a function that returns [N, D] of what is judged "
            f"(got {features!r})"
        )
    return FromFunction(features)
