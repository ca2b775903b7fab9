"""Twins of a run: the same recipe and seed without its choice of samples, and what the choice was
worth beside them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rich.table import Table
from scipy.stats import t

from pfb.lab.train.options.config import TrainConfig
from pfb.lab.train.options.settings import PruningSettings

Arm = Literal["full", "short", "small-batch", "uniform", "paper"]
ARMS: tuple[Arm, ...] = get_args(Arm)
"""What a run can be to another, in the order of tables."""
CHOICE: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(PruningSettings)}
"""Settings of what is left out, and how. A twin differs in them, and in the length of training."""
SHARE = ("prune", "start", "stop", "ramp", "fill")
LENGTH = ("epochs", "batch_size")
ASIDE = ("out", "overwrite", "data_root", "workers", "log_every", "eval_every", "cpu", "minutes", "track")
"""Settings that decide nothing."""

Settings = dict[str, Any]
Group = dict[int, dict[str, Any]]
"""Runs that differ in the seed alone, by seed."""


def twin(config: TrainConfig, arm: Arm, compute: float, samples: int) -> TrainConfig:
    """The settings of a run's twin.

    Args:
        config: of the run.
        arm: full: full data, as long as the run. short: full data for fewer epochs, at its compute.
            small-batch: full data in as many steps with smaller batches, at its compute. uniform:
            random samples left out instead, as many. paper: the paper's method with its own window.
        compute: of the run, full training = 1.
        samples: of the training set.

    Example:
        >>> run = TrainConfig(epochs=20, batch_size=128, prune=0.5)
        >>> twins = [twin(run, arm, compute=0.6, samples=50_000) for arm in ARMS]
        >>> [(twin.epochs, twin.batch_size) for twin in twins]
        [(20, 128), (12, 128), (12, 77), (20, 128), (20, 128)]
        >>> [twin.method for twin in twins]
        ['full', 'full', 'full', 'uniform', 'paper']
    """
    if arm == "paper":
        return dataclasses.replace(config, **CHOICE | {"method": "paper", "prune": config.prune})
    if arm == "uniform":
        share: Settings = {name: getattr(config, name) for name in SHARE}
        return dataclasses.replace(config, **CHOICE | share | {"method": "uniform"})
    full = dataclasses.replace(config, **CHOICE | {"method": "full"})
    if arm == "full":
        return full
    if arm == "short":
        return dataclasses.replace(full, epochs=max(1, round(config.epochs * compute)))
    batch_size = min(config.batch_size, max(2, round(config.batch_size * compute)))
    steps = config.epochs * (samples // config.batch_size)
    epochs = max(1, round(steps / (samples // batch_size)))
    return dataclasses.replace(full, batch_size=batch_size, epochs=epochs)


def kind(run: Settings, other: Settings) -> str | None:
    """What the second of two runs is to the first, which prunes: one of :data:`ARMS`; ``None`` if
    they differ in more, or nothing can be told from it.

    Args:
        run, other: the settings of the two, as in ``config.json``.
    """
    if run["method"] == "full" or _recipe(run) != _recipe(other):
        return None
    longer, larger = (other[name] - run[name] for name in LENGTH)
    if other["method"] == "full":
        if larger == 0:
            return "full" if longer == 0 else "short" if longer < 0 else None
        return "small-batch" if larger < 0 else None
    if other["method"] == "paper" != run["method"] and longer == larger == 0:
        return "paper" if run["prune"] == other["prune"] else None
    same = other["method"] == "uniform" != run["method"] and all(run[name] == other[name] for name in (*SHARE, *LENGTH))
    return "uniform" if same else None


def _recipe(config: Settings) -> Settings:
    return {name: value for name, value in config.items() if name not in (*CHOICE, *LENGTH, *ASIDE)}


@dataclass(frozen=True)
class Row:
    """A run or one of its twins, over all seeds.

    Attributes:
        kind: ``run``, or what the twin is to it, see :func:`kind`.
        name: the run's method and share, or the twin's kind and size.
        seeds: trained.
        accuracy: mean test accuracy after the last epoch, %.
        gain: the run's accuracy minus this twin's, points, mean over common seeds.
        half: half the 95 % interval of the gain; ``None`` with fewer than two common seeds.
        seconds: mean time of training.
        time_saved: by the run, of this twin's time, mean over common seeds.
        compute: mean, full training = 1.
    """

    kind: str
    name: str
    seeds: list[int]
    accuracy: float
    gain: float | None
    half: float | None
    seconds: float
    time_saved: float | None
    compute: float


def compare(runs: list[dict[str, Any]]) -> list[list[Row]]:
    """For every choice of samples among some runs that has twins there, its row and theirs.

    Args:
        runs: their summaries.
    """
    groups: dict[str, Group] = {}
    for run in runs:
        settings = {name: value for name, value in run["config"].items() if name not in (*ASIDE, "seed")}
        groups.setdefault(json.dumps(settings, sort_keys=True), {})[run["config"]["seed"]] = run
    found = []
    for group in groups.values():
        rows = [
            _row(arm, _named(arm, _settings(other)), other, group)
            for other in groups.values()
            if (arm := _kind(group, other)) is not None
        ]
        if rows:
            rows.sort(key=lambda row: ARMS.index(row.kind))
            found.append([_row("run", described(_settings(group)), group, None), *rows])
    return found


def alone(runs: list[dict[str, Any]]) -> Row:
    """The row of a run without twins.

    Args:
        runs: its summaries, which differ in the seed alone.
    """
    group = {run["config"]["seed"]: run for run in runs}
    return _row("run", described(_settings(group)), group, None)


def described(config: Settings) -> str:
    """A run by what it does to its samples."""
    if config["method"] == "full":
        return f"full, {config['epochs']} epochs"
    return f"{config['method']} {config['prune']:.0%}" + (", filled" if config["fill"] else "")


def _settings(group: Group) -> Settings:
    settings: Settings = next(iter(group.values()))["config"]
    return settings


def _kind(group: Group, other: Group) -> str | None:
    """What one group is to another, if they have a seed in common."""
    run, twin = ({**_settings(one), "seed": 0} for one in (group, other))
    return kind(run, twin) if group.keys() & other.keys() else None


def _named(arm: str, twin: Settings) -> str:
    sizes = {
        "short": f"short, {twin['epochs']} epochs",
        "small-batch": f"small-batch of {twin['batch_size']}",
        "uniform": described(twin),
        "paper": described(twin),
    }
    return sizes.get(arm, arm)


def _row(arm: str, name: str, group: Group, run: Group | None) -> Row:
    reference = group if run is None else run
    common = group.keys() & reference.keys()
    gain = half = saved = None
    if run is not None:
        gain = statistics.mean(100 * (run[s]["test_accuracy"] - group[s]["test_accuracy"]) for s in common)
        interval = paired_difference(run, group)
        half = None if interval is None else interval[1]
        saved = 1 - statistics.mean(seconds(run[s]) / seconds(group[s]) for s in common)
    computes = [group[s]["compute"] * group[s]["full_samples"] / reference[s]["full_samples"] for s in common]
    return Row(
        arm,
        name,
        sorted(group),
        statistics.mean(100 * one["test_accuracy"] for one in group.values()),
        gain,
        half,
        statistics.mean(seconds(one) for one in group.values()),
        saved,
        statistics.mean(computes),
    )


def paired_difference(group: Group, base: Group) -> tuple[float, float] | None:
    """Mean difference of test accuracy in points, over the seeds both have, and half its 95 %
    interval (Student).

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
    differences = [100 * (group[s]["test_accuracy"] - base[s]["test_accuracy"]) for s in seeds]
    half = t.ppf(0.975, len(seeds) - 1) * statistics.stdev(differences) / math.sqrt(len(seeds))
    return statistics.mean(differences), float(half)


def seconds(run: dict[str, Any]) -> float:
    """What a run's training epochs took: processor time where a CPU trained, which other load
    changes little, else by the clock.
    """
    return float(run["train_cpu_seconds" if on_cpu(run) else "train_seconds"])


def on_cpu(run: dict[str, Any]) -> bool:
    """Whether a run, known by its ``device``, trained on a CPU."""
    return "threads" in run["device"]


HEADINGS = ["", "seeds", "accuracy", "run minus it", "time", "saved by the run", "compute"]
NARROW = [name for name in HEADINGS if name != "saved by the run"]
"""What of it a terminal shows."""


def cells(row: Row) -> list[str]:
    """A row as text, see :data:`HEADINGS`."""
    return [
        row.name,
        str(len(row.seeds)),
        f"{row.accuracy:.2f}%",
        _gain(row),
        f"{row.seconds:.1f} s",
        "" if row.time_saved is None else f"{row.time_saved:.1%}",
        f"{row.compute:.0%}",
    ]


def _gain(row: Row) -> str:
    """Points, with an interval if there is one."""
    if row.gain is None:
        return ""
    gain = f"{round(row.gain, 2) + 0.0:+.2f}"  # no -0.00
    return gain if row.half is None else f"{gain} ± {row.half:.2f}"


def verdicts(rows: list[Row]) -> list[str]:
    """What a comparison allows to say, a line per twin.

    Example:
        >>> run = Row("run", "uniform 50%", [0, 1], 80.0, None, None, 6.0, None, 0.6)
        >>> verdicts([run, Row("full", "full", [0, 1], 81.0, -1.0, 0.4, 10.0, 0.4, 1.0)])
        ['uniform 50% is worse than full: -1.00 ± 0.40 points, at 60% of its compute']
    """
    run, *others = rows
    lines = []
    for row in others:
        at = f", at {run.compute / row.compute:.0%} of its compute"
        if row.gain is None or row.half is None:
            lines.append(f"{run.name} minus {row.name}: {_gain(row)} points (one seed, so no interval){at}")
            continue
        apart = abs(row.gain) > row.half > 0  # seeds of equal difference tell nothing
        verb = "cannot be told from" if not apart else "is better than" if row.gain > 0 else "is worse than"
        lines.append(f"{run.name} {verb} {row.name}: {_gain(row)} points{at}")
    return lines


def note(runs: list[dict[str, Any]]) -> str:
    """How the columns of a comparison are to be read."""
    time = "processor time of the training epochs" if all(map(on_cpu, runs)) else "time of the training epochs"
    return f"Accuracy after the last epoch, differences in points with 95 % intervals, {time}, compute in operations."


def render(rows: list[Row]) -> Table:
    """A comparison for the terminal."""
    table = Table(title=f"{rows[0].name}, beside its twins" if len(rows) > 1 else rows[0].name)
    for name in NARROW:
        table.add_column(name, no_wrap=True, justify="left" if name == "" else "right")
    for row in rows:
        short = row if row.kind != "run" else dataclasses.replace(row, name="the run")
        table.add_row(*(cell for name, cell in zip(HEADINGS, cells(short), strict=True) if name in NARROW))
    return table
