"""The paper's rule on all of CIFAR-10, beside random blocking in its own wiring and other ways to
train on less: trainings of ``pfb train``, each to its last epoch, in pairs of seeds.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pfb.lab.bench import checks, output
from pfb.lab.train import loop
from pfb.lab.train.batches.loaders import length
from pfb.lab.train.data import Source, load
from pfb.lab.train.options.config import TrainConfig, without_folders
from pfb.lab.train.paired.twins import twin
from studies.grid import Cell, run_missing, write_table
from studies.verdicts import Run, by_arm, difference, mean_and_deviation, paired

STAGES = (
    ("full", "paper", "uniform-inside"),
    ("short", "uniform", "small-batch", "paper-before", "infobatch"),
    ("copies",),
)
"""Each is trained on all seeds before the next begins: if time ends, what is done has intervals."""
ARMS = tuple(arm for stage in STAGES for arm in stage)
"""``uniform-inside``: random samples stop where and when those of ``paper`` do. ``short``,
``small-batch``: full data at the compute of ``uniform``. The others are methods of ``pfb train``.
"""
CONTROLS = ("full", "uniform", "uniform-inside")


@dataclass(frozen=True)
class WholeConfig:
    """Train ResNet-8 on a set of images with every arm and seed, in one thread. A run that stands
    in --out with the same settings is not done again, so one that was interrupted goes on.
    """

    data: str = "cifar10"
    """cifar10, or imagefolder:PATH."""
    epochs: int = 6
    """Of all arms but short and small-batch, which have fewer."""
    prune: float = 0.4
    """Share of a batch that is left out."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each decides weights, order and augmentation."""
    arms: tuple[str, ...] = ARMS
    """What is compared."""
    minutes: float | None = None
    """Begin no further training after so many."""
    train_samples: int | None = None
    """So few, to try the study itself."""
    out: Path = Path("runs/whole")
    """Folder: a line of numbers for each run (whole.jsonl), and the table (whole.md)."""

    def __post_init__(self) -> None:
        checks.known(ARMS, arms=self.arms)
        checks.at_least(0, seeds=self.seeds)

    def config_of(self, arm: str, seed: int, samples: int) -> TrainConfig:
        """The settings of one training."""
        recipe: dict[str, Any] = {
            "data": self.data,
            "train_samples": self.train_samples,
            "model": "cifar-resnet8",
            "epochs": self.epochs,
            "batch_size": 128,
            "lr": 0.2,
            "precision": "bf16",
            "channels_last": True,
            "eval_every": self.epochs,
            "track": "none",
            "cpu": True,
            "prune": self.prune,
            "seed": seed,
        }
        if arm in ("short", "small-batch"):
            uniform = TrainConfig(**recipe, method="uniform")
            schedule = uniform.schedule()
            compute = 1 - statistics.mean(schedule.share(step, 10_000) for step in range(10_000))
            return twin(uniform, arm, compute, samples)  # type: ignore[arg-type]
        return TrainConfig(**recipe, method=arm)


def run(config: WholeConfig) -> Path:
    """Do what is missing, stage by stage, seed by seed, and write the table; returns its path."""
    torch.set_num_threads(1)
    place = config.out / "whole.jsonl"
    source = load(config.config_of("full", 0, 1))
    samples = length(source.train)
    cells = [
        Cell("whole", seed, arm) for stage in STAGES for seed in config.seeds for arm in stage if arm in config.arms
    ]
    settings = {**without_folders(dataclasses.asdict(config)), "samples": samples}
    for name in ("arms", "seeds", "train_samples", "minutes", "out"):
        settings.pop(name, None)

    def train(cell: Cell) -> Run:
        return train_one(config.config_of(cell.arm, cell.seed, samples), source)

    run_missing(cells, settings, place, train, config.minutes)
    return write_table(place, render)


def train_one(config: TrainConfig, source: Source) -> Run:
    """Numbers of one training, whose own folder goes when it ends."""
    folder = Path(tempfile.mkdtemp())
    try:
        summary = loop.train(dataclasses.replace(config, out=folder / "run"), source=source)
    finally:
        shutil.rmtree(folder)
    kept = ("train_accuracy", "compute", "steps", "samples", "trained_samples", "full_samples", "train_cpu_seconds")
    accuracy = summary["test_accuracy"]  # as many of each class: the mean recall
    return {
        "config": without_folders(summary["config"]),
        "accuracy": accuracy,
        "mean_recall": accuracy,
        **{name: summary[name] for name in kept},
    }


def render(runs: list[Run]) -> str:
    """Markdown table: means and deviations over seeds, differences in pairs of them."""
    accuracies = by_arm(runs, "accuracy")
    whole = max(run["full_samples"] for run in runs)
    rows = []
    for arm in (arm for arm in ARMS if arm in accuracies):
        own, mine = accuracies[arm], [run for run in runs if run["arm"] == arm]
        rows.append(
            [
                f"`{arm}`",
                len(own),
                mean_and_deviation(list(own.values())),
                *("" if arm == other else minus(own, accuracies.get(other, {})) for other in CONTROLS),
                f"{100 * statistics.mean(run['train_accuracy'] for run in mine):.1f}",
                f"{statistics.mean(run['trained_samples'] / whole for run in mine):.1%}",
                f"{statistics.mean(run['compute'] * run['full_samples'] / whole for run in mine):.1%}",
                f"{statistics.mean(run['steps'] for run in mine):,.0f}",
            ]
        )
    header = ["arm", "n", "test accuracy, %", *(f"minus `{other}`" for other in CONTROLS)]
    return output.table([*header, "training accuracy, %", "trained on, of `full`", "compute", "steps"], rows)


def minus(own: dict[int, float], other: dict[int, float]) -> str:
    """A difference in pairs of seeds, of one pair without an interval."""
    common = own.keys() & other.keys()
    if len(common) == 1:
        return f"{own[min(common)] - other[min(common)]:+.2f}"
    return difference(paired(own, other))
