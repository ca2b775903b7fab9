"""Who learns less? Trainings of a small network judged by group: night pictures among clips, skies
among other pictures, clips alone, and distinct pictures.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

import pfb
from pfb.lab.bench import checks, output
from studies import arms, sets
from studies.grid import Cell, fit, judge, run_missing, write_table
from studies.group_data import skies
from studies.redundancy import Clips
from studies.verdicts import Run, difference, holm, mean_and_deviation, paired

SetName = Literal["night", "sky", "clips", "distinct"]
SETS: tuple[SetName, ...] = get_args(SetName)
OLD = "copies-no-views"
ARMS = ("full", "uniform", "short", "copies", OLD)
OWN = "copies"
RECIPE = sets.Recipe(6, 64, 0.1, "accuracy", "")
NIGHT, DIM = 0.05, 10
SKY, KINDS = 0.3, 4


@dataclass(frozen=True)
class StarvedConfig:
    """Train with every arm on every seed, and judge each group by itself. A run that stands in
    --out with the same settings is not done again, so one that was interrupted goes on.
    """

    sets: tuple[SetName, ...] = SETS
    """night: clips of 40 frames beside single pictures, and one in twenty samples a single picture
    by night. sky: 30 % smooth pictures of four kinds beside those of ten classes, none a copy.
    clips: as night, without night. distinct: pictures of ten classes.
    """
    images: str = "cifar10"
    """cifar10, digits, or imagefolder:PATH of small images."""
    arms: tuple[str, ...] = ARMS
    """full: all samples, 1.7 times the compute. uniform: half of each batch, at random. short:
    fewer steps. copies: half of each batch, by the default rule. copies-no-views: by the same
    without own views.
    """
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each decides the data that are drawn, the weights, and the order."""
    minutes: float | None = None
    """Begin no further training after so many."""
    tiny: bool = False
    """Few samples, to try the study itself."""
    out: Path = field(default_factory=lambda: Path("runs/starved"))
    """Folder: one line of numbers for each run (starved.jsonl), and the table (starved.md)."""

    def __post_init__(self) -> None:
        checks.known(SETS, sets=self.sets)
        checks.known(ARMS, arms=self.arms)
        checks.at_least(0, seeds=self.seeds)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a run, beside set, seed and arm."""
        images = "cifar10" if self.images.startswith("imagefolder:") else self.images
        told = {"images": images, "tiny": self.tiny, "epochs": RECIPE.epochs, "batch_size": RECIPE.batch_size}
        return {**told, "lr": RECIPE.lr, "prune": arms.PRUNE, "start": arms.START, "stop": arms.STOP}


@dataclass(frozen=True)
class Claim:
    """What was claimed before the runs: ``copies`` minus an arm, of a group of a set.

    Attributes:
        set, arm, group: of which set, minus which arm, in the accuracy of which group.
        above: the difference is above zero, p < 0.05 after Holm's correction; else it is no loss:
            above -1.5 points in the mean, and its interval not below zero.
    """

    set: SetName
    arm: str
    group: str
    above: bool = False

    def __str__(self) -> str:
        said = "above" if self.above else "no worse than"
        return f"{self.set}, {self.group}: `{OWN}` is {said} `{self.arm}`"

    def holds(self, told: tuple[float, float, float], corrected: float) -> bool:
        """Of a difference, half its interval and its p-value."""
        mean, half, _ = told
        return mean > 0 and corrected < 0.05 if self.above else mean > -LEAST_LOSS and mean + half > 0


LEAST_LOSS = 1.5
CLAIMS = (
    Claim("night", "uniform", "group", above=True),
    Claim("night", "uniform", "rest", above=True),
    Claim("night", "short", "rest", above=True),
    Claim("sky", "uniform", "group"),
    Claim("sky", "uniform", "rest"),
    Claim("clips", "uniform", "rest", above=True),
    Claim("clips", "short", "rest", above=True),
    Claim("distinct", "uniform", "rest"),
    *(Claim(name, OLD, "rest") for name in SETS),
    Claim("night", OLD, "group"),
    Claim("sky", OLD, "group"),
)
NEARLY = 0.9
"""And of night and sky: how often a sample of the group is trained on, as a part of how often a
single picture of the rest is, is at least this.
"""


@dataclass(frozen=True)
class Judged:
    """A task, and which of its samples are the group in question: ``[N]`` and ``[N_test]`` bool."""

    task: sets.Task
    train: Tensor
    test: Tensor


def run(config: StarvedConfig) -> Path:
    """Do what is missing, seed by seed, then write the table; returns its path."""
    torch.set_num_threads(1)
    place = config.out / "starved.jsonl"
    asked = [Cell(name, seed, arm) for name in config.sets for seed in config.seeds for arm in config.arms]
    made = functools.lru_cache(1)(lambda name, seed: make(name, config.images, seed, config.tiny))

    def train(cell: Cell) -> Run:
        return train_one(cell.arm, made(cell.set, cell.seed), cell.seed)

    run_missing(asked, config.settings, place, train, config.minutes)
    return write_table(place, render)


def make(name: SetName, images: str, seed: int, tiny: bool = False) -> Judged:
    """The data of one seed."""
    task = sets.make("clips", Path(), seed, images, tiny)
    generator = torch.Generator().manual_seed(2000 + seed)
    train, test = torch.zeros(len(task.y), dtype=torch.bool), torch.zeros(len(task.y_test), dtype=torch.bool)
    if name == "clips":
        return Judged(task, train, test)
    if name == "night":
        train[(task.sizes == 1).nonzero()[: round(NIGHT * len(task.y)), 0]] = True
        x = torch.where(train[:, None, None, None], by_night(task.x), task.x)
        both = torch.cat([task.x_test, by_night(task.x_test)])
        prepare, augment = curved(task.prepare), curved(task.augment)
        task = dataclasses.replace(task, x=x, prepare=prepare, augment=augment)
        task = dataclasses.replace(task, x_test=both, y_test=task.y_test.repeat(2))
        return Judged(task, train, torch.cat([test, ~test]))
    source, groups = Clips(images, clips=0, singles=len(task.y), seed=seed).source()
    given: Any = source.train
    task = dataclasses.replace(task, x=given.images, y=given.labels, groups=groups)
    if name == "distinct":
        return Judged(task, train, test)
    some, shape = round(SKY * len(task.y)), task.x.shape[1:]
    train[:some] = True
    sky, kind = skies(some, shape[0], shape[1], KINDS, generator)
    sky_test, kind_test = skies(len(test) // 4, shape[0], shape[1], KINDS, generator)
    classes = task.classes + KINDS
    task = dataclasses.replace(
        task,
        x=torch.cat([sky, task.x[some:]]),
        y=torch.cat([task.classes + kind, task.y[some:]]),
        x_test=torch.cat([task.x_test, sky_test]),
        y_test=torch.cat([task.y_test, task.classes + kind_test]),
        classes=classes,
        model=lambda: sets.picture_reader(shape[0], classes, 16),
    )
    return Judged(task, train, torch.cat([test, torch.ones(len(kind_test), dtype=torch.bool)]))


def by_night(images: Tensor) -> Tensor:
    """At a tenth of the light, uint8."""
    return (images.float() / DIM).round().to(torch.uint8)


def curved(made: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Pictures from -1 to 1 with the root of their light: of a tenth of it, so small a network
    would learn nothing.
    """
    return lambda x: 2 * (made(x) / 2 + 0.5).clamp_min(0).sqrt() - 1


class WithoutOwnViews:
    """The default rule, which is told nothing of own views."""

    reads = "density"

    def __call__(self, features: Tensor, density: Any, generator: torch.Generator | None = None) -> Tensor:
        return pfb.InverseDensity()(features, density, generator=generator)


class Way(arms.Run):
    """One arm's way through the data."""

    def __init__(self, arm: str, task: sets.Task, model: torch.nn.Module, seed: int) -> None:
        super().__init__(OWN if arm == OLD else arm, task, RECIPE, model, seed)
        if arm == OLD and self.pruner is not None:
            settings: Any = {"total_steps": self.pruner.total_steps, "density": self.pruner.density, "seed": seed}
            self.pruner = pfb.BatchPruner(self.pruner.schedule, rule=WithoutOwnViews(), **settings)


def train_one(arm: str, data: Judged, seed: int) -> Run:
    """Train one arm to its last epoch, and judge each group."""
    torch.manual_seed(seed)
    task, model = data.task, data.task.model()
    way = Way(arm, task, model, seed)
    trained, _ = fit(way, model, RECIPE)
    found: Run = {**judge(model, task), "compute": way.sizes.compute}
    groups = {"group": data.train, "rest": ~data.train & (task.sizes == 1), "copies": task.sizes > 1}
    for name, here in groups.items():
        found[f"trained_{name}"] = float(trained[here].mean()) if here.any() else None
    for name, here in {"group": data.test, "rest": ~data.test}.items():
        part = dataclasses.replace(task, x_test=task.x_test[here], y_test=task.y_test[here])
        found[name] = judge(model, part)["accuracy"] if here.any() else None
    return found


def render(runs: list[Run]) -> str:
    """Markdown: means and standard deviations over seeds by set, arm and group, what ``copies`` is
    better by in pairs of seeds, and what became of the claims.
    """
    rows, claims = [], []
    for name in SETS:
        mine = [run for run in runs if run["set"] == name]
        told = compared(mine)
        corrected = dict(zip(told, holm([p for _, _, p in told.values()]), strict=True))
        claims += [
            f"{claim}: {difference(told[key])}, p {corrected[key]:.3f}: "
            f"**{'holds' if claim.holds(told[key], corrected[key]) else 'fails'}**"
            for claim in CLAIMS
            if claim.set == name and (key := (claim.arm, claim.group)) in told
        ]
        claims += _trained(name, mine)
        for arm in [arm for arm in ARMS if any(run["arm"] == arm for run in mine)]:
            of_arm = [run for run in mine if run["arm"] == arm]
            row = [f"{name}, `{arm}`", f"{len(of_arm)}", f"{statistics.mean(run['compute'] for run in of_arm):.0%}"]
            row += [" / ".join(_times(of_arm, part) for part in ("group", "rest", "copies"))]
            row += [_mean_and_deviation(of_arm, part) for part in ("group", "rest")]
            for part in ("group", "rest"):
                key = arm, part
                row.append(f"{difference(told[key])} ({corrected[key]:.3f})" if key in told else "")
            rows.append(row)
    head = ["set, arm", "n", "compute", "times trained: group / singles / copies", "group, %", "rest, %"]
    head += [f"`{OWN}` minus it, {part} (p, Holm)" for part in ("group", "rest")]
    return output.table(head, rows) + "\n" + "".join(f"- {claim}.\n" for claim in claims)


def compared(runs: list[Run]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """``copies`` minus each other arm in pairs of seeds, in points of each group's accuracy."""
    found = {}
    for arm in ARMS:
        for part in ("group", "rest"):
            own, other = (
                {run["seed"]: 100 * run[part] for run in runs if run["arm"] == one and run[part] is not None}
                for one in (OWN, arm)
            )
            if arm != OWN and (told := paired(own, other)) is not None:
                found[arm, part] = told
    return found


def _trained(name: str, runs: list[Run]) -> list[str]:
    own = [run for run in runs if run["arm"] == OWN and run["trained_group"] is not None]
    if not own:
        return []
    part = statistics.mean(run["trained_group"] / run["trained_rest"] for run in own)
    verdict = "holds" if part >= NEARLY else "fails"
    return [f"{name}: the group is trained on at least {NEARLY} times as often as singles: {part:.2f}: **{verdict}**"]


def _times(runs: list[Run], part: str) -> str:
    times = [run[f"trained_{part}"] for run in runs if run[f"trained_{part}"] is not None]
    return f"{statistics.mean(times):.1f}" if times else "-"


def _mean_and_deviation(runs: list[Run], part: str) -> str:
    values = [100 * run[part] for run in runs if run[part] is not None]
    return mean_and_deviation(values) if values else ""
