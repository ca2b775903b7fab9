"""Runs that differ in one thing, compared seed by seed."""

from __future__ import annotations

import math
import statistics
from typing import Any

from scipy.stats import t

Group = dict[int, dict[str, Any]]
"""Runs that differ in the seed alone, by seed."""


def paired_difference(
    group: Group, base: Group, of: str = "test_accuracy", factor: float = 100
) -> tuple[float, float] | None:
    """Mean difference of one of the runs' numbers, by default of test accuracy in points, over the
    seeds both have, and half its 95 % interval (Student).

    ``None`` with fewer than two common seeds.

    Example:
        >>> pruned = {0: {"test_accuracy": 0.5}, 1: {"test_accuracy": 0.6}}
        >>> full = {0: {"test_accuracy": 0.4}, 1: {"test_accuracy": 0.3}}
        >>> mean, half = paired_difference(pruned, full)
        >>> round(mean, 1), round(half, 1)
        (20.0, 127.1)
    """
    seeds = sorted(group.keys() & base.keys())
    if len(seeds) < 2:
        return None
    differences = [factor * (group[s][of] - base[s][of]) for s in seeds]
    half = t.ppf(0.975, len(seeds) - 1) * statistics.stdev(differences) / math.sqrt(len(seeds))
    return statistics.mean(differences), float(half)


def shown_difference(group: Group, base: Group, of: str = "test_accuracy", factor: float = 100, digits: int = 2) -> str:
    """:func:`paired_difference` for a table, with the number of pairs where some runs have no
    partner; empty where there are fewer than two.

    Example:
        >>> pruned = {seed: {"test_accuracy": 0.5 + 0.01 * seed} for seed in range(3)}
        >>> shown_difference(pruned, {0: {"test_accuracy": 0.4}, 1: {"test_accuracy": 0.41}})
        '+10.00 ± 0.00 (n = 2)'
    """
    difference = paired_difference(group, base, of, factor)
    if difference is None:
        return ""
    pairs = len(group.keys() & base.keys())
    fewer = f" (n = {pairs})" if pairs < len(group) else ""
    return f"{difference[0]:+.{digits}f} ± {difference[1]:.{digits}f}{fewer}"


def seconds(run: dict[str, Any]) -> float:
    """What a run's training epochs took: processor time where a CPU trained, which other load
    changes little, else by the clock.
    """
    return float(run["train_cpu_seconds" if on_cpu(run) else "train_seconds"])


def on_cpu(run: dict[str, Any]) -> bool:
    """Whether a run, known by its ``device``, trained on a CPU."""
    return "threads" in run["device"]
