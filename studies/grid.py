"""The one machine that runs arms in pairs: every arm on every seed, each run to its last epoch,
none done twice; then a table of what pruning near-duplicates in the batch is worth.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfb.lab import files
from pfb.lab.bench import checks, output
from pfb.lab.errors import RunError
from pfb.lab.origin import processor, versions
from studies import source_code, verdicts
from studies.arms import ARMS, PRUNE, START, STOP
from studies.arms import Run as Way
from studies.sets import RECIPES, SETS, Recipe, SetName, Task, make
from studies.verdicts import METRICS, Run


@dataclass(frozen=True)
class GridConfig:
    """Train with every arm on every seed. A run that stands in --out with the same settings is not
    done again, so one that was interrupted goes on.
    """

    set: SetName = "logs"
    """logs, signs, digits: natural, from --folder. clips, tail: made from --images. code: files of
    the transformers package that is installed.
    """
    folder: Path = Path("data")
    """Where loghub.npz, gtsrb10.npz and fsdd.npz lie, see docs/redundancy.md."""
    images: str = "cifar10"
    """Of clips and tail: cifar10, digits, or imagefolder:PATH."""
    arms: tuple[str, ...] = ARMS
    """What is compared; studies/arms.py says what each does."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each decides the data that are drawn, the weights, and the order."""
    epochs: int | None = None
    """Of the arm full; by default the set's own."""
    minutes: float | None = None
    """Begin no further training after so many."""
    tiny: bool = False
    """Few samples, to try the machine itself."""
    out: Path = field(default_factory=lambda: Path("runs/grid"))
    """Folder: one line of numbers for each run (SET.jsonl), and the table (SET.md)."""

    def __post_init__(self) -> None:
        checks.known(SETS, set=(self.set,))
        checks.known(ARMS, arms=self.arms)
        checks.at_least(0, seeds=self.seeds)
        if self.epochs is not None:
            checks.at_least(1, epochs=self.epochs)

    @property
    def recipe(self) -> Recipe:
        own = RECIPES[self.set]
        return own if self.epochs is None else dataclasses.replace(own, epochs=self.epochs)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a run, beside arm and seed."""
        recipe = self.recipe
        images = "cifar10" if self.images.startswith("imagefolder:") else self.images
        told: dict[str, Any] = {
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "lr": recipe.lr,
            "tiny": self.tiny,
        }
        told |= {"images": images} if self.set in ("clips", "tail") else {}
        told |= {source_code.PACKAGE: source_code.version()} if self.set == "code" else {}
        return {**told, "prune": PRUNE, "start": START, "stop": STOP}


class Cell(NamedTuple):
    """One run."""

    set: str
    seed: int
    arm: str


def run(config: GridConfig) -> Path:
    """Do what is missing, seed by seed, then write the table; returns its path."""
    torch.set_num_threads(1)
    place = config.out / f"{config.set}.jsonl"
    useful = config.recipe.arms or ARMS
    if idle := [arm for arm in config.arms if arm not in useful]:
        print(f"{config.set} has no use for {', '.join(idle)}")
    asked = [Cell(config.set, seed, arm) for seed in config.seeds for arm in config.arms if arm in useful]
    task = functools.lru_cache(1)(lambda seed: make(config.set, config.folder, seed, config.images, config.tiny))

    def train(cell: Cell) -> Run:
        return train_one(cell.arm, task(cell.seed), config.recipe, cell.seed)

    run_missing(asked, config.settings, place, train, config.minutes)
    files.write_text(config.out / "overview.md", overview(config.out))
    return write_table(place, render)


def overview(folder: Path) -> str:
    """Markdown table of all sets whose runs lie in a folder."""
    found: dict[str, list[Run]] = {name: runs for name in SETS if (runs := read(folder / f"{name}.jsonl"))}
    return verdicts.overview(found, {name: (recipe.title, recipe.primary) for name, recipe in RECIPES.items()})


def read(place: Path) -> list[Run]:
    """The runs that a file holds."""
    return [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []


def write_table(place: Path, render: Callable[[list[Run]], str]) -> Path:
    """Write the table of a file's runs beside it, and show it; returns its path."""
    table = place.with_suffix(".md")
    files.write_text(table, render(read(place)))
    print(table.read_text())
    return table


def render(runs: list[Run]) -> str:
    """Markdown table of one set's runs."""
    return verdicts.render(runs, RECIPES[runs[0]["set"]].primary) if runs else ""


def run_missing(
    asked: list[Cell],
    settings: dict[str, Any],
    place: Path,
    train: Callable[[Cell], Run],
    minutes: float | None = None,
) -> None:
    """Do the runs that do not stand in the file with the same settings, and note each there as it
    ends, beginning none after so many minutes. An arm that a set has no use for is told and left
    out.
    """
    begun = time.monotonic()
    place.parent.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(output.rounded(settings)))
    there = {Cell(run["set"], run["seed"], run["arm"]) for run in read(place) if run["settings"] == settings}
    missing = [cell for cell in asked if cell not in there]
    origin = {"settings": settings, "versions": versions(), "device": processor(), "threads": torch.get_num_threads()}
    for i, cell in enumerate(missing):
        spent = (time.monotonic() - begun) / 60
        if minutes is not None and spent > minutes:
            print(f"no time is left after {i} of {len(missing)} runs; the same command goes on")
            return
        try:
            ended = {**cell._asdict(), **train(cell), **origin}
        except RunError as error:
            print(error)
            continue
        with place.open("a") as file:
            file.write(json.dumps(output.rounded(ended)) + "\n")
        spent = (time.monotonic() - begun) / 60
        told = ", ".join(f"{name} {ended[name]:.4f}" for name in METRICS if ended.get(name) is not None)
        left = spent / (i + 1) * (len(missing) - i - 1)
        print(f"{i + 1}/{len(missing)} {cell.set} {cell.arm} seed {cell.seed}: {told}; {left:.0f} min left", flush=True)


def train_one(arm: str, task: Task, recipe: Recipe, seed: int) -> Run:
    """Train one arm to its last epoch, and judge it."""
    torch.manual_seed(seed)
    model = task.model()
    way = Way(arm, task, recipe, model, seed)
    trained, seconds = fit(way, model, recipe)
    return {
        "compute": way.sizes.compute,
        "left": len(way.left) / len(task.y),
        "loaded": way.loaded / way.of_full,
        "trained_alone": _mean(trained[task.sizes <= ALONE]),
        "trained_others": _mean(trained[task.sizes > ALONE]),
        "seconds": seconds,
        "train_samples": len(task.y),
        "test_samples": len(task.y_test),
        **judge(model, task),
    }


def fit(way: Way, model: nn.Module, recipe: Recipe) -> tuple[Tensor, float]:
    """Train a model by an arm's batches; returns how often each sample was trained on, ``[N]``, and
    the seconds of processor time that it took.
    """
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, 0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=way.sizes.steps)
    trained = torch.zeros(len(way.task.y))
    begun, steps = time.process_time(), 0
    for x, y, index in way.batches():
        logits = model(x)
        if way.blocker is not None:
            y, index = way.blocker.select(y), way.blocker.select(index)
        losses = F.cross_entropy(logits, y, reduction="none").view(len(y), -1).mean(1)
        loss = losses.mean() if way.infobatch is None else way.infobatch.reduce(losses, index)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if way.blocker is not None:
            way.blocker.step()
        trained.index_add_(0, index, torch.ones(len(index)))
        steps += 1
    seconds = time.process_time() - begun
    if steps != way.sizes.steps:
        raise RuntimeError(f"{way.arm} took {steps} steps, {way.sizes.steps} were planned")
    return trained, seconds


ALONE = 5
"""Samples of a group that is so small, or smaller, are counted as rare."""


def _mean(times: Tensor) -> float | None:
    return float(times.mean()) if len(times) else None


def _nats(model: nn.Module, task: Task, is_new: Tensor) -> dict[str, float | None]:
    held = zip(torch.split(task.x_test, 500), torch.split(task.y_test, 500), strict=True)
    taken = torch.cat([F.cross_entropy(model(task.prepare(x)), y, reduction="none").mean(1) for x, y in held]).double()
    return {"nats_new": float(taken[is_new].mean()), "nats": float(taken.mean()), "new": float(is_new.double().mean())}


@torch.no_grad()
def judge(model: nn.Module, task: Task) -> dict[str, float | None]:
    """What is right of the samples held out, without augmentation: of all, in the mean over the
    classes, and of the samples of the rarest fifth of the classes that are held out, by their
    number in training (``None`` where all classes have about as many). Where bytes are asked, the
    nats that each takes: of all samples, and of those that are equal to none in training.
    """
    model.eval()
    if task.is_new is not None:
        return _nats(model, task, task.is_new)
    parts = [model(task.prepare(x)).argmax(1) for x in torch.split(task.x_test, 500)]
    right = (torch.cat(parts) == task.y_test).double()
    in_test = torch.bincount(task.y_test, minlength=task.classes)
    in_train = torch.bincount(task.y, minlength=task.classes)
    recall = torch.zeros(task.classes, dtype=torch.double).index_add_(0, task.y_test, right) / in_test.clamp_min(1)
    held = in_test.nonzero()[:, 0]
    by_number = held[in_train[held].argsort(stable=True)]
    rare = by_number[: -(-len(held) // 5)]
    uneven = in_train[held].max() >= 2 * in_train[held].min()
    return {
        "accuracy": float(right.mean()),
        "mean_recall": float(recall[held].mean()),
        "rarest_fifth": float(right[torch.isin(task.y_test, rare)].mean()) if uneven else None,
    }
