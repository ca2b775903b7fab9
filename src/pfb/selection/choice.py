"""From features to the samples that are kept: one function for both tools.

Shape suffixes: N samples, G groups of rows that go on together, K kept rows, D feature dimensions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pfb.density.kernels import Density
from pfb.selection.rules import RuleCall
from pfb.selection.sampling import drawn
from pfb.selection.selection import keep_count_of_parts, keep_largest
from pfb.selection.views import Views
from pfb.utils.errors import RuleError, first_line


class Choice(NamedTuple):
    """Which rows are kept, and why.

    Attributes:
        indices: ``[K]`` int64, ascending.
        log_weights: ``[G]``, what a drawing rule drew in proportion to; ``None`` for others.
    """

    indices: Tensor
    log_weights: Tensor | None


def choose(
    features_ND: Tensor,
    rule: RuleCall,
    density: Density,
    views: Views,
    pruned_parts: int,
    own_ND: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Choice:
    """Choose the rows that go on; reads only. Samples whose features are not finite are kept, so
    that the loss shows them.

    Args:
        features_ND: what the samples are judged by.
        rule: gives the importance.
        density: what the rule reads.
        views: rows that go on together or not at all.
        pruned_parts: the share, see :func:`~pfb.selection.selection.parts`.
        own_ND: features of each sample's own view, for a rule that takes them.
        generator: for a rule that draws; without one from the global stream.

    Raises:
        ValueError: the rows are no whole number of groups.
        RuleError: a rule of the user's fails, or returns no value per sample.
    """
    features_GD = views.pooled(features_ND)
    own_GD = None if own_ND is None else views.pooled(own_ND)
    given = features_GD, own_GD, rule, density, views, pruned_parts, generator
    if torch.compiler.is_compiling():
        return _chosen(*given)
    try:
        return _chosen(*given)
    except Exception as error:
        place = str(getattr(rule.rule, "__module__", ""))
        if place.startswith("pfb.") or isinstance(error, MemoryError) or "memory" in str(error):
            raise
        name = getattr(rule.rule, "__qualname__", type(rule.rule).__qualname__)
        said = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise RuleError(
            f"the rule {place}.{name}, given features {tuple(features_GD.shape)}: {said}{first_line(error)}"
        ) from error


def _chosen(
    features_GD: Tensor, own_GD: Tensor | None, rule: RuleCall, density: Density, views: Views, parts: int, random: Any
) -> Choice:
    log_weights_G = rule.log_weights(features_GD, density, own_GD)
    n = len(features_GD)
    importance_G = rule(features_GD, density, own_GD, random) if log_weights_G is None else drawn(log_weights_G, random)
    if rule.reads != "nothing":
        importance_G = torch.where(features_GD.isfinite().all(1), importance_G, torch.nan)
    groups_K = keep_largest(importance_G, keep_count_of_parts(n, parts))
    return Choice(views.rows(groups_K, n * views.count), log_weights_G)


def collect(features_ND: Tensor, indices_K: Tensor, rule: RuleCall, density: Density, views: Views) -> None:
    """Give the density, where the rule reads it, what it asks for: the features of all samples, or
    of those that were kept.
    """
    if rule.reads != "density":
        return
    features_GD = views.pooled(features_ND)
    if density.collects != "all":
        features_GD = features_GD.index_select(0, views.groups(indices_K))
    density.accumulate(features_GD)
