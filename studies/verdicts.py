"""What trainings of several arms say in pairs of seeds: a table, and accuracy against compute."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pfb.lab.bench import output
from pfb.lab.train.pairs import shown_difference
from studies.arms import ARMS, Run

AGAINST = ("uniform", "short", "small-batch", "full")
"""Arms that every other is compared with."""
SHADES = {"inverse-density": "crimson", "oracle": "black"}
"""The others have the ten colours of a cycle, which have to do."""


@dataclass(frozen=True)
class Metric:
    """What is judged: a number of every run."""

    key: str
    title: str
    factor: float = 1.0
    digits: int = 2


def render(runs: list[Run], metric: Metric, shares: dict[str, str] | None = None) -> str:
    """Markdown table: means over seeds, differences in pairs of seeds with half their 95 %
    interval.

    Args:
        runs: as :func:`run_missing` returned them.
        metric: what is judged.
        shares: further columns, by the number of a run that is a share kept.
    """
    shares, rows = shares or {}, []
    for data, prune, arm in _groups(runs):
        own = group(runs, data, prune, arm)
        values = [metric.factor * run[metric.key] for run in own.values()]
        rows.append(
            [
                data,
                f"{prune:.0%}",
                arm,
                f"{statistics.mean(run['compute'] for run in own.values()):.0%}",
                f"{statistics.mean(values):.{metric.digits}f} (n = {len(values)})",
                *differences(runs, data, prune, arm, metric),
                *(_mean_share(own, key) for key in shares),
            ]
        )
    header = ["data", "pruned", "arm", "compute", metric.title, *(f"minus {other}" for other in AGAINST)]
    return output.table([*header, *shares.values()], rows)


def differences(runs: list[Run], data: str, prune: float, arm: str, metric: Metric) -> list[str]:
    """An arm's difference to each of ``AGAINST`` in pairs of seeds, half its 95 % interval, and
    the number of pairs where some seeds have none; empty for fewer than two pairs, and to itself.
    """
    own, told = group(runs, data, prune, arm), []
    for other in AGAINST:
        base = group(runs, data, 0.0 if other == "full" else prune, other) if other != arm else {}
        told.append(shown_difference(own, base, metric.key, metric.factor, metric.digits))
    return told


def _mean_share(runs: dict[int, Run], key: str) -> str:
    values = [run[key] for run in runs.values() if run[key] is not None]
    return f"{statistics.mean(values):.0%}" if values else ""


def draw(runs: list[Run], metric: Metric) -> Figure:
    """Judgement against compute: each arm's mean, and its runs beside it."""
    kinds = list(dict.fromkeys(data for data, _, _ in _groups(runs)))
    figure, panels = output.panels(4.2 * len(kinds) + 1.6, 4, len(kinds))
    named: dict[str, Any] = {}
    for panel, data in zip(panels, kinds, strict=True):
        draw_on(panel, [run for run in runs if run["data"] == data], metric)
        panel.set_title(data)
        named |= {label: line for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    panels[0].set_ylabel(metric.title)
    figure.legend(named.values(), named.keys(), fontsize=8, loc="outside right upper")
    return figure


def draw_on(panel: Axes, runs: list[Run], metric: Metric) -> None:
    """One panel of :func:`draw`."""
    for color, arm in enumerate(ARMS):
        groups = [group(runs, d, prune, a).values() for d, prune, a in _groups(runs) if a == arm]
        if not groups:
            continue
        points = [point for some in groups for point in _points(some, metric)]
        means = [[statistics.mean(axis) for axis in zip(*_points(some, metric), strict=True)] for some in groups]
        shade = SHADES.get(arm, f"C{color}")
        panel.plot(*zip(*points, strict=True), ".", color=shade, alpha=0.35)
        panel.plot(*zip(*sorted(means), strict=True), "o-", color=shade, label=arm)
        panel.annotate(arm, max(means), (7, -3), textcoords="offset points", fontsize=8, color=shade)
    panel.set_xlabel("compute, full data = 1")


def _points(runs: Iterable[Run], metric: Metric) -> list[tuple[float, float]]:
    return [(run["compute"], metric.factor * run[metric.key]) for run in runs]


def _groups(runs: list[Run]) -> list[tuple[str, float, str]]:
    kinds = list(dict.fromkeys(run["data"] for run in runs))
    found = {(run["data"], run["prune"], run["arm"]) for run in runs}
    return sorted(found, key=lambda named: (kinds.index(named[0]), named[1], ARMS.index(named[2])))


def group(runs: list[Run], data: str, prune: float, arm: str) -> dict[int, Run]:
    """Runs that differ in the seed alone, by seed."""
    return {run["seed"]: run for run in runs if (run["data"], run["prune"], run["arm"]) == (data, prune, arm)}
