"""Trainings to be compared: data, share, seed and arm of each, none done twice, and what they say
in pairs of seeds.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor, nn

import pfb
from pfb.cost import step_cost
from pfb.lab.bench import output
from pfb.lab.origin import versions
from pfb.lab.train.pairs import paired_difference

Run = dict[str, Any]

ARMS = (
    *("full", "short", "small-batch", "fewer-views"),
    *("uniform", "paper-reuse", "paper-recompute", "inverse-density", "nearest", "oracle"),
)
AGAINST = ("uniform", "short", "small-batch", "full")
"""Arms that every other is compared with."""


class Cell(NamedTuple):
    """One run."""

    data: str
    prune: float
    seed: int
    arm: str

    @classmethod
    def of(cls, run: Run) -> Cell:
        return cls(*(run[name] for name in cls._fields))


@dataclass(frozen=True)
class Metric:
    """What is judged: a number of every run."""

    key: str
    title: str
    factor: float = 1.0
    digits: int = 2


def cells(data: Sequence[str], prunes: Sequence[float], seeds: Sequence[int], arms: Sequence[str]) -> list[Cell]:
    """All runs asked for, seed by seed, so that an early end leaves complete pairs.

    Example:
        >>> for cell in cells(["clips"], [0.5], [0], ["full", "uniform"]):
        ...     print(*cell)
        clips 0.0 0 full
        clips 0.5 0 uniform
    """
    return [
        Cell(kind, 0.0 if arm == "full" else prune, seed, arm)
        for kind in data
        for seed, prune, arm in itertools.product(seeds, prunes, arms)
        if arm != "full" or prune == prunes[0]
    ]


def run_missing(
    asked: list[Cell],
    settings: dict[str, Any],
    out: Path,
    train: Callable[[Cell], Run],
    minutes: float | None = None,
) -> list[Run]:
    """Do the runs that do not stand in the file of runs beside ``out`` with the same settings, and
    note each there as it ends, beginning none after so many minutes; returns all that stand there,
    those asked for first.
    """
    begun = time.monotonic()
    place = out.with_suffix(".jsonl")
    place.parent.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(output.rounded(settings)))
    runs = [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []
    runs = [run for run in runs if run["settings"] == settings]
    missing = sorted(set(asked) - {Cell.of(run) for run in runs}, key=asked.index)
    for cell in track(missing, "runs", disable=not missing):
        if minutes is not None and time.monotonic() - begun > 60 * minutes:
            break
        ended = {"settings": settings, **cell._asdict(), **train(cell), "commit": versions().get("commit")}
        runs.append(output.rounded(ended))
        with place.open("a") as file:
            file.write(json.dumps(runs[-1]) + "\n")
    runs = [{k: v for k, v in run.items() if k != "settings"} for run in runs]
    return sorted(runs, key=lambda run: Cell.of(run) not in asked)


# What an arm does


def attach(
    cell: Cell, model: nn.Module, cut: str, steps: int, share: pfb.Schedule, memory: int, gamma: float, oracle: Oracle
) -> pfb.Blocker | None:
    """The blocker of an arm; ``None`` for one that stops nothing."""
    density = pfb.NeighbourMemory(memory)
    rules: dict[str, dict[str, Any]] = {
        "uniform": {"importance": pfb.Uniform()},
        "paper-reuse": {"importance": pfb.RareFirst(), "shallow": "reuse"},
        "paper-recompute": {"importance": pfb.RareFirst()},
        "inverse-density": {"importance": pfb.InverseDensity(gamma), "estimator": density},
        "nearest": {"importance": nearest(gamma), "estimator": density, "features": "sketch"},
        "oracle": {"importance": oracle},
    }
    if cell.arm not in rules:
        return None
    return pfb.attach(model, cut, share, total_steps=steps, **{"shallow": "recompute", **rules[cell.arm]})


class Oracle:
    """Draws with weight 1 / number of copies, which are handed in before each forward."""

    reads = "nothing"

    def __init__(self) -> None:
        self.copies = torch.ones(0)

    def __call__(self, features: Tensor) -> Tensor:
        return _drawn(1 / self.copies)


def nearest(gamma: float) -> Callable[[Tensor, pfb.NeighbourMemory], Tensor]:
    """``InverseDensity`` by the plain distance, not in proportion to what is usual."""
    return lambda features, memory: _drawn(memory.distance(features).clamp_min(1e-6) ** gamma)


def _drawn(weights_N: Tensor) -> Tensor:
    return weights_N.log() - torch.empty_like(weights_N).exponential_().log()


def compute(cell: Cell, window: float, shallow: float) -> float:
    """Of a run by multiplications, full data = 1, if samples are stopped during so large a part of
    it; sketch and choice count for nothing.

    Example:
        >>> round(compute(Cell("clips", 0.5, 0, "paper-recompute"), 0.8, 0.3), 3)
        0.68
    """
    wiring = "reuse" if cell.arm == "paper-reuse" else "recompute"
    scored = shallow if cell.arm.startswith("paper") else 0.0
    return 1 + (step_cost(cell.prune, scored, wiring) - 1) * window


def sizes(cell: Cell, window: float, full_steps: int, batch_size: int) -> tuple[int, int]:
    """Steps and batch size of an arm: a twin that stops nothing has the compute of ``uniform``.

    Example:
        >>> short, small = (Cell("clips", 0.5, 0, arm) for arm in ("short", "small-batch"))
        >>> sizes(short, 0.8, 100, 64), sizes(small, 0.8, 100, 64)
        ((60, 64), (100, 38))
    """
    pruned = 1 - cell.prune * window
    steps = round(full_steps * pruned) if cell.arm == "short" else full_steps
    return steps, max(2, round(batch_size * pruned)) if cell.arm in ("small-batch", "fewer-views") else batch_size


def batches(samples: int, size: int, views: int = 1) -> Iterator[Tensor]:
    """Indices of a batch, each so many times; without end."""
    different = size // views
    while True:
        order = torch.randperm(samples)[: samples // different * different]
        yield from order.repeat_interleave(views).view(-1, different * views)


class Kept:
    """How often samples of each kind went on."""

    def __init__(self, samples: int) -> None:
        self.kept, self.met = torch.zeros(samples), torch.zeros(samples)

    def count(self, indices: Tensor, blocker: pfb.Blocker | None) -> None:
        """After a forward of the samples with these indices."""
        if blocker is not None and blocker.selection is not None:
            self.met[indices] += 1
            self.kept[blocker.selection.select(indices.to(blocker.selection.indices.device)).cpu()] += 1

    def share(self, which: Tensor) -> float | None:
        """Of the chances that samples of this kind had; ``None`` where they had none."""
        met = float(self.met[which].sum())
        return float(self.kept[which].sum()) / met if met else None


# What the runs say


def render(runs: list[Run], metric: Metric, shares: dict[str, str] | None = None) -> str:
    """Markdown table: means over seeds, differences in pairs of seeds with half their 95 %
    interval.

    Args:
        runs: as :func:`run_missing` returned them.
        metric: what is judged.
        shares: further columns, by the number of a run that is a share kept.
    """
    shares, rows, digits = shares or {}, [], metric.digits
    for data, prune, arm in _groups(runs):
        group = _group(runs, data, prune, arm)
        values = [metric.factor * run[metric.key] for run in group.values()]
        others = {other: _group(runs, data, 0.0 if other == "full" else prune, other) for other in AGAINST}
        apart = [
            paired_difference(group, base, metric.key, metric.factor) if other != arm else None
            for other, base in others.items()
        ]
        rows.append(
            [
                data,
                f"{prune:.0%}",
                arm,
                f"{statistics.mean(run['compute'] for run in group.values()):.0%}",
                f"{statistics.mean(values):.{digits}f} (n = {len(values)})",
                *("" if d is None else f"{d[0]:+.{digits}f} ± {d[1]:.{digits}f}" for d in apart),
                *(_mean_share(group, key) for key in shares),
            ]
        )
    header = ["data", "pruned", "arm", "compute", metric.title, *(f"minus {other}" for other in AGAINST)]
    return output.table([*header, *shares.values()], rows)


def _mean_share(group: dict[int, Run], key: str) -> str:
    values = [run[key] for run in group.values() if run[key] is not None]
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
        groups = [_group(runs, d, prune, a).values() for d, prune, a in _groups(runs) if a == arm]
        if not groups:
            continue
        points = [(run["compute"], metric.factor * run[metric.key]) for group in groups for run in group]
        means = [[statistics.mean(axis) for axis in zip(*_points(group, metric), strict=True)] for group in groups]
        shade = "crimson" if arm == "inverse-density" else f"C{color}"
        panel.plot(*zip(*points, strict=True), ".", color=shade, alpha=0.35)
        panel.plot(*zip(*sorted(means), strict=True), "o-", color=shade, label=arm)
        panel.annotate(arm, max(means), (7, -3), textcoords="offset points", fontsize=8, color=shade)
    panel.set_xlabel("compute, full data = 1")


def _points(group: Any, metric: Metric) -> list[tuple[float, float]]:
    return [(run["compute"], metric.factor * run[metric.key]) for run in group]


def _groups(runs: list[Run]) -> list[tuple[str, float, str]]:
    kinds = list(dict.fromkeys(run["data"] for run in runs))
    found = {(run["data"], run["prune"], run["arm"]) for run in runs}
    return sorted(found, key=lambda group: (kinds.index(group[0]), group[1], ARMS.index(group[2])))


def _group(runs: list[Run], data: str, prune: float, arm: str) -> dict[int, Run]:
    return {run["seed"]: run for run in runs if (run["data"], run["prune"], run["arm"]) == (data, prune, arm)}
