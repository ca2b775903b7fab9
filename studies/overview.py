"""What looking for copies gains, on one page: the table and the figure that README shows, from the
results of the other studies.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pfb.lab import files
from pfb.lab.bench import output
from studies import verdicts
from studies.arms import Run
from studies.verdicts import Metric

ACCURACY = Metric("test_accuracy", "points of accuracy", 100, 1)
HELD_OUT = Metric("all", "... all that is held out", -100, 1)
NATS = Metric("novel", "hundredths of a nat per byte, new code", -100, 1), HELD_OUT
COLOUR = Metric("novel", "% of the error, parts of pictures never shown", -100, 1), HELD_OUT


@dataclass(frozen=True)
class Case:
    """One row: half of each batch is stopped in all; the title is filled with the settings."""

    title: str
    file: str
    data: str
    metric: Metric
    arm: str = "inverse-density"
    relative: bool = False
    """In percent of what uniform leaves, where the error has no unit of its own."""


CASES = (
    Case(
        "{name} clips: {clips:,} images of {frames} near-equal frames, {singles:,} single ones",
        "clips",
        "clips",
        ACCURACY,
    ),
    Case("{name}, {samples:,} images, no copies", "clips", "distinct", ACCURACY),
    Case("{name} clips of lengths by a power law", "clips", "tail", ACCURACY),
    Case("{name} clips under TrivialAugment, judged by the originals", "clips", "strong", ACCURACY, "originals"),
    *(Case("source code (transformers), 60,000 windows of it", "code", "code", metric) for metric in NATS),
    *(Case("... all of it, a larger network", "code-all", "code-all", metric) for metric in NATS),
    *(Case("patches of the frames of four videos", "video", "video", metric, relative=True) for metric in COLOUR),
    Case("{name}, {samples:,} images, {epochs} epochs", "long", "distinct", ACCURACY),
)
PRUNE = 0.5
SHOWN = ("full", "short", "small-batch", "uniform", "paper-recompute", "inverse-density")


@dataclass(frozen=True)
class OverviewConfig:
    """Put together what the studies of redundancy found."""

    root: Path = Path("results/redundancy-cpu")
    """Folder of their results: clips.json, code.json, code-all.json, video.json, long.json."""

    @property
    def out(self) -> Path:
        return self.root / "overview.md"


def run(config: OverviewConfig) -> Path:
    """Write the table and the figure; returns the table's path."""
    files.write_text(config.out, render(config.root))
    output.save(draw(config.root), config.root / "overview.png")
    return config.out


def render(root: Path) -> str:
    """Markdown table; + is better, differences in pairs of seeds with half their 95 % interval."""
    rows = []
    for case in CASES:
        runs = _runs(root, case)
        own, uniform = (verdicts.group(runs, case.data, PRUNE, arm) for arm in (case.arm, "uniform"))
        if len(own.keys() & uniform.keys()) < 2:
            continue
        metric = _relative(case, uniform)
        told = verdicts.differences(runs, case.data, PRUNE, case.arm, metric)
        rows.append([_title(root, case), f"{metric.title} (n = {len(own)})", *told])
    header = ["data", "better by (+) or worse (-), in", *(TITLES[name] for name in verdicts.AGAINST)]
    return output.table(header, rows)


TITLES = {
    "uniform": "than random blocking",
    "short": "than fewer epochs",
    "small-batch": "than smaller batches",
    "full": "than full data, 1.7 times the compute",
}


def draw(root: Path) -> Figure:
    """Accuracy against compute, with copies and without."""
    figure, panels = output.panels(10, 3.6, 2)
    for panel, case in zip(panels, CASES, strict=False):
        runs = [run for run in _runs(root, case) if run["arm"] in SHOWN]
        verdicts.draw_on(panel, runs, Metric("test_accuracy", "", 100))
        panel.set(title=_title(root, case).replace(": ", ":\n"), ylabel="test accuracy, %", xlim=(0.5, 1.15))
        panel.title.set_fontsize(9)
    return figure


def _title(root: Path, case: Case) -> str:
    settings = _numbers(root, case).get("config", {})
    if "clips" not in settings:
        return case.title
    clips = settings["clips"]
    name = "CIFAR-10" if clips["data"].startswith(("cifar10", "imagefolder")) else clips["data"]
    samples = clips["clips"] * clips["frames"] + clips["singles"]
    return case.title.format(**{**clips, "name": name, "samples": samples, "epochs": settings["epochs"]})


def _relative(case: Case, uniform: dict[int, Run]) -> Metric:
    """The case's metric; a relative one in percent of what uniform leaves."""
    if not case.relative:
        return case.metric
    usual = statistics.mean(run[case.metric.key] for run in uniform.values())
    return dataclasses.replace(case.metric, factor=case.metric.factor / usual)


def _runs(root: Path, case: Case) -> list[Run]:
    runs = _numbers(root, case).get("runs", [])
    return [run for run in runs if run["data"] == case.data and run["prune"] in (0.0, PRUNE)]


def _numbers(root: Path, case: Case) -> dict[str, Any]:
    place = root / f"{case.file}.json"
    found: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    return found
