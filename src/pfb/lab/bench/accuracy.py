"""Does it keep the accuracy? A grid of methods, shares and seeds on one recipe. What comes out: see
``comparison``.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pfb
from pfb.features.cost import shallow_share, step_cost
from pfb.lab.bench import checks, comparison
from pfb.lab.bench.methods import METHODS
from pfb.lab.bench.setup import first_block
from pfb.lab.errors import RunError
from pfb.lab.train import checkpoint
from pfb.lab.train.config import TrainConfig, without_folders
from pfb.lab.train.data import Source, load
from pfb.lab.train.folder import RunFolder
from pfb.lab.train.models import build
from pfb.lab.train.pairs import seconds
from pfb.lab.train.records import kept_share


@dataclass(frozen=True)
class AccuracyConfig:
    """Train every method with every seed on one recipe and compare last-epoch accuracy in pairs of
    equal seeds.
    """

    recipe: TrainConfig = field(default_factory=TrainConfig)
    methods: tuple[str, ...] = tuple(name for name, method in METHODS.items() if not method.early)
    """All of them, but for the cuts after the first block, which need a first stage of several."""
    prunes: tuple[float, ...] = (0.3, 0.5, 0.7)
    seeds: tuple[int, ...] = (0, 1, 2)
    shard: tuple[int, int] = (0, 1)
    """Part and parts: several processes or devices share the grid, each with its own part."""
    root: Path = Path("runs/accuracy")
    """Folder of the grid; finished cells in it are skipped, an interrupted one goes on where it
    was.
    """
    out: Path | None = None
    """Folder of the table, the figures and all numbers; by default the root."""
    against: str | None = None
    """One more column: differences to this method at the same share."""

    def __post_init__(self) -> None:
        checks.known(METHODS, methods=self.methods, against=self.against)
        checks.shares(prunes=self.prunes)
        checks.at_least(0, seeds=self.seeds)
        if not 0 <= self.shard[0] < self.shard[1]:
            raise RunError(f"--shard takes part and parts, such as 0 2 and 1 2 (got {self.shard})")


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    method: str
    prune: float
    config: TrainConfig

    @property
    def finished(self) -> bool:
        return (self.config.out / "summary.json").exists()


def run(config: AccuracyConfig) -> Path:
    """Run or continue this part of the grid, compare all that is finished in the root, and return
    the table's path.
    """
    from pfb.lab.train.loop import train
    from pfb.lab.train.terminal import console

    source = load(config.recipe)
    grid = cells(config, source)
    part = grid[config.shard[0] :: config.shard[1]]
    for number, cell in enumerate(part, start=1):
        if not cell.finished:
            console.rule(f"cell {number} of {len(part)}: {cell.config.out.name}")
            train(cell.config, resume=bool(checkpoint.finished(cell.config.out)), source=source)
    console.print(f"{sum(cell.finished for cell in grid)} of {len(grid)} cells are finished")
    shallow = functools.cache(lambda cut: _shallow_share(config.recipe, source, cut))
    results = [_result(summary.parent, shallow) for summary in sorted(config.root.glob("*/summary.json"))]
    return comparison.write(results, config.out or config.root, config.against)


def cells(config: AccuracyConfig, source: Source) -> list[Cell]:
    """The grid, seed by seed, so that an early end leaves complete pairs.

    Raises:
        RunError: a cut after the first block where the stage has only one, or a share that skipping
            alone exceeds.
    """
    methods = {name: METHODS[name] for name in config.methods}
    early = _early_cut(config.recipe, source) if any(method.early for method in methods.values()) else None
    # Uniform blocking under recompute runs no shallow part for the samples it stops.
    scored = {"uniform": 0.0}
    if any(method.short == "pfb" for method in methods.values()):
        scored["pfb"] = _shallow_share(config.recipe, source)
    grid = []
    for seed, prune, (name, method) in itertools.product(config.seeds, config.prunes, methods.items()):
        if name == "full" and prune != config.prunes[0]:
            continue
        share = 0.0 if name == "full" else prune
        changes = {**method.settings, "prune": share, "seed": seed, "overwrite": True}
        if method.short is not None:
            changes["epochs"] = _short_epochs(config.recipe, prune, scored[method.short])
        if method.early:
            changes["cut"] = early
        if skip := changes.get("skip", 0.0):
            if prune <= skip:
                raise RunError(f"--prunes must be above {skip} for {name}, which skips so much (got {prune})")
            changes["prune"] = 1 - (1 - prune) / (1 - skip)
        out = config.root / f"{name}-prune{share:g}-seed{seed}"
        grid.append(Cell(name, share, dataclasses.replace(config.recipe, **changes, out=out)))
    return grid


KEPT = (
    *("versions", "device", "processes", "cut", "pruned_steps", "test_accuracy", "train_accuracy"),
    *("full_samples", "samples", "deep_samples", "trained_samples"),
)
"""What a result takes from a run's summary as it is."""


def _result(folder: Path, shallow: Callable[[str | None], float]) -> dict[str, Any]:
    """What tables and figures need of a run, and what decided it, without the folders it lay in."""
    files = RunFolder(folder)
    summary, records = files.summary(), files.records()
    assert summary is not None and records is not None  # a run that has a summary is finished
    settings = without_folders(summary["config"])
    method, cell = folder.name.split("-prune")
    return {
        "method": method,
        "prune": float(cell.split("-seed")[0]),
        "config": settings,
        **{name: summary[name] for name in KEPT},
        "seconds": seconds(summary),
        "shallow_share": shallow(summary["cut"] or settings["cut"]),
        "kept_share_quantiles": _kept_share_quantiles(records),
        "curve": [[line["epoch"], line["test_accuracy"]] for line in files.epochs() if "test_accuracy" in line],
    }


def _kept_share_quantiles(records: dict[str, Tensor]) -> list[float] | None:
    """How unequally the samples were treated: the share of its pruned batches in which a rarely
    kept sample (5 %) and an often kept one (95 %) went on.
    """
    share = kept_share(records)
    share = share[share.isfinite()]
    return torch.quantile(share, torch.tensor([0.05, 0.95])).tolist() if len(share) else None


def _model_and_cut(recipe: TrainConfig, source: Source) -> tuple[nn.Module, str]:
    model = build(recipe.model, len(source.classes), source.channels, source.image_size)
    with pfb.attach(model, recipe.cut) as blocker:
        return model, blocker.cut


def _shallow_share(recipe: TrainConfig, source: Source, cut: str | None = None) -> float:
    model, stage = _model_and_cut(recipe, source)
    image = torch.zeros(2, source.channels, source.image_size, source.image_size)
    return shallow_share(model, cut or stage, image)


def _early_cut(recipe: TrainConfig, source: Source) -> str:
    model, stage = _model_and_cut(recipe, source)
    block = first_block(model, stage)
    if block is None:
        raise RunError(f"{stage!r} of {recipe.model} is a single block; take another --recipe.model or no early cut")
    return block


def _short_epochs(recipe: TrainConfig, prune: float, shallow: float) -> int:
    """Epochs of full training that cost as much as the recipe with pruning in the better wiring, by
    FLOPs.
    """
    schedule = dataclasses.replace(recipe, prune=prune).schedule()
    costs = [
        min(step_cost(schedule.share(step, 1000), shallow, wiring) for wiring in ("reuse", "recompute"))
        for step in range(1000)
    ]
    return max(1, round(recipe.epochs * statistics.mean(costs)))
