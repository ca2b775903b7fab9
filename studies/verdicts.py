"""What runs of several arms say in pairs of seeds: differences with intervals, p-values corrected
for their number, and one table.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy import stats

from pfb.lab.bench import output

Run = dict[str, Any]
METRICS = {
    "accuracy": "accuracy, %",
    "mean_recall": "mean recall, %",
    "rarest_fifth": "rarest fifth, %",
    "nats_new": "nats per byte, new samples",
    "nats": "nats per byte, all",
}
"""Of nats fewer are better."""
PARTS = {"loaded": "samples loaded", "left": "samples left"}
"""Shares of those that ``full`` loads, and of the data set."""
OWN = "copies"
"""The arm that is compared with every other; until it has run, ``uniform`` is."""


def paired(own: dict[int, float], other: dict[int, float]) -> tuple[float, float, float] | None:
    """Mean difference over the seeds that both have, half its 95 % interval, and the p-value of no
    difference, both by Student's t; ``None`` for fewer than two pairs.

    Example:
        >>> [round(x, 3) for x in paired({0: 2.0, 1: 3.0, 2: 4.5}, {0: 1.0, 1: 1.0, 2: 2.5})]
        [1.667, 1.434, 0.038]
    """
    seeds = sorted(own.keys() & other.keys())
    if len(seeds) < 2:
        return None
    differences = [own[seed] - other[seed] for seed in seeds]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(seeds))
    half = float(stats.t.ppf(0.975, len(seeds) - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, len(seeds) - 1)) if error else float(mean == 0)
    return mean, half, p


def holm(values: Sequence[float]) -> list[float]:
    """P-values of one family, corrected by Holm's method.

    Example:
        >>> [round(p, 2) for p in holm([0.01, 0.5, 0.02])]
        [0.03, 0.5, 0.04]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = largest
    return corrected


def by_arm(runs: list[Run], metric: str) -> dict[str, dict[int, float]]:
    """A metric by arm and seed, in percent where it is a share; runs without it are left out."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        if run.get(metric) is not None:
            found.setdefault(run["arm"], {})[run["seed"]] = run[metric] * (100 if _is_share(metric) else 1)
    return found


def _is_share(metric: str) -> bool:
    return METRICS[metric].endswith("%")


def render(runs: list[Run], primary: str) -> str:
    """Markdown table of one set's runs: means and standard deviations over seeds, and what the arm
    ``copies`` is better by in pairs of seeds; the p-values are of the primary metric and corrected
    for the number of arms.
    """
    metrics = [m for m in METRICS if any(run.get(m) is not None for run in runs)]
    arms = _in_order(runs)
    own = OWN if OWN in arms else "uniform"
    parts = {name: title for name, title in PARTS.items() if any(name in run for run in runs)}
    told = {arm: found for arm in arms if (found := _against(runs, own, arm, primary)) is not None}
    corrected = dict(zip(told, holm([p for _, _, p in told.values()]), strict=True))
    rows = []
    for arm in arms:
        mine = [run for run in runs if run["arm"] == arm]
        row = [f"`{arm}`", f"{len(mine)}", f"{statistics.mean(run['compute'] for run in mine):.0%}"]
        row += [_part(mine, name) for name in parts]
        row += [mean_and_deviation(list(by_arm(mine, m)[arm].values()), _digits(m)) for m in metrics]
        row += [difference(_against(runs, own, arm, m), _digits(m)) for m in metrics]
        row += [_p_value(corrected[arm]) if arm in corrected else ""]
        rows.append(row)
    titles = [METRICS[m] for m in metrics]
    minus = [f"`{own}` minus it, {title.removesuffix(', %')}" for title in titles]
    p = f"p, {METRICS[primary].removesuffix(', %')} (Holm)"
    return output.table(["arm", "n", "compute", *parts.values(), *titles, *minus, p], rows)


OTHERS = ("full", "uniform", "short", "small-batch", "removed", "removed-true", "sampler-found", "sampler")
"""Arms of the overview."""


def overview(sets: dict[str, list[Run]], titles: dict[str, tuple[str, str]]) -> str:
    """Markdown table of all sets: by how much ``copies`` is better (+) or worse (-) than other
    arms, in points of the set's primary metric; bold where p < 0.05 after Holm's correction for all
    arms of the set.

    Args:
        sets: runs by the name of their set.
        titles: what each set is, and its primary metric.
    """
    rows = []
    for name, runs in sets.items():
        title, primary = titles[name]
        arms = _in_order(runs)
        told = {arm: found for arm in arms if (found := _against(runs, OWN, arm, primary)) is not None}
        corrected = dict(zip(told, holm([p for _, _, p in told.values()]), strict=True))
        own = by_arm(runs, primary).get(OWN, {})
        if not told:
            continue
        row = [f"`{name}`: {title}", METRICS[primary], f"{len(own)}"]
        digits = _digits(primary) - _is_share(primary)
        row += [f"{statistics.mean(own.values()):.{digits}f}"]
        for arm in OTHERS:
            text = difference(told.get(arm), digits)
            row.append(f"**{text}**" if corrected.get(arm, 1.0) < 0.05 else text)
        rows.append(row)
    return output.table(["data", "metric", "n", "`copies`", *(f"minus `{arm}`" for arm in OTHERS)], rows)


def _in_order(runs: list[Run]) -> list[str]:
    from studies.arms import ARMS

    there = {run["arm"] for run in runs}
    return [arm for arm in ARMS if arm in there]


def _against(runs: list[Run], own: str, arm: str, metric: str) -> tuple[float, float, float] | None:
    values = by_arm(runs, metric)
    return None if arm == own else paired(values.get(own, {}), values.get(arm, {}))


def _part(runs: list[Run], name: str) -> str:
    """The mean of a share of all samples; empty where it is exactly one, or was not noted."""
    share = statistics.mean(run.get(name, 1.0) for run in runs)
    return "" if share == 1 else f"{share:.0%}"


def _digits(metric: str) -> int:
    return 2 if _is_share(metric) else 3


def mean_and_deviation(values: list[float], digits: int = 2) -> str:
    """For a table, the standard deviation in brackets if there is one.

    Example:
        >>> mean_and_deviation([1.0, 2.0]), mean_and_deviation([1.0])
        ('1.50 (0.71)', '1.00')
    """
    deviation = f" ({statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def difference(told: tuple[float, float, float] | None, digits: int = 2) -> str:
    """What :func:`paired` says, for a table; empty for none.

    Example:
        >>> difference((1.5, 0.25, 0.04))
        '+1.50 ± 0.25'
    """
    return "" if told is None else f"{told[0]:+.{digits}f} ± {told[1]:.{digits}f}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
