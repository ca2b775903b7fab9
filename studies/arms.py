"""Trainings to be compared: data, share, seed and arm of each, none done twice."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from rich.progress import track
from torch import Tensor, nn

import pfb
from pfb.features.cost import step_cost
from pfb.lab import files
from pfb.lab.bench import output
from pfb.lab.origin import versions
from pfb.selection.sampling import drawn

Run = dict[str, Any]

ARMS = (
    *("full", "short", "small-batch", "fewer-views"),
    *("uniform", "paper-reuse", "paper-recompute", "inverse-density", "originals", "weighted", "oracle"),
)


class Cell(NamedTuple):
    """One run."""

    data: str
    prune: float
    seed: int
    arm: str

    @classmethod
    def of(cls, run: Run) -> Cell:
        return cls(*(run[name] for name in cls._fields))


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
    runs = [json.loads(line) for line in files.read_text(place).splitlines()] if place.exists() else []
    runs = [run for run in runs if run["settings"] == settings]
    missing = sorted(set(asked) - {Cell.of(run) for run in runs}, key=asked.index)
    commit = versions().get("commit")
    for cell in track(missing, "runs", disable=not missing):
        if minutes is not None and time.monotonic() - begun > 60 * minutes:
            break
        ended = {"settings": settings, **cell._asdict(), **train(cell), "commit": commit}
        runs.append(output.rounded(ended))
        with files.appending(place) as file:
            file.write(json.dumps(runs[-1]) + "\n")
    runs = [{k: v for k, v in run.items() if k != "settings"} for run in runs]
    return sorted(runs, key=lambda run: Cell.of(run) not in asked)


# What an arm does


def attach(
    cell: Cell,
    model: nn.Module,
    cut: str,
    steps: int,
    share: pfb.Schedule,
    memory: int,
    oracle: Oracle,
    originals: pfb.Originals,
) -> pfb.Blocker | None:
    """The blocker of an arm; ``None`` for one that stops nothing."""
    density = pfb.NeighbourMemory(memory)
    rules: dict[str, dict[str, Any]] = {
        "uniform": {"importance": pfb.Uniform()},
        "paper-reuse": {"importance": pfb.RareFirst(), "shallow": "reuse"},
        "paper-recompute": {"importance": pfb.RareFirst()},
        "inverse-density": {"estimator": density},
        "originals": {"estimator": density, "features": originals},
        "weighted": {"estimator": density},
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
        return drawn(-self.copies.log())


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


class Recipe(Protocol):
    """What a study's settings say of a training."""

    @property
    def batch_size(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def start(self) -> float: ...
    @property
    def stop(self) -> float: ...
    @property
    def memory(self) -> int: ...


def train(
    cell: Cell,
    recipe: Recipe,
    model: nn.Module,
    cut: str,
    full_steps: int,
    copies: Tensor,
    optimizer_of: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    losses_of: Callable[[Tensor, pfb.Blocker | None], Tensor],
    original_of: Callable[[Tensor], Tensor] | None = None,
    views: int = 1,
    compile: bool = False,
) -> Kept:
    """Train an arm to its end under OneCycle.

    Args:
        cell: the arm, and its share.
        recipe: batch size, peak learning rate, window of pruning, and memory.
        model: new, on its device.
        cut: where it is cut.
        full_steps: of the arm ``full``.
        copies: how many samples are the same as each, ``[N]``, for the oracle.
        optimizer_of: of the model's parameters.
        losses_of: loss of each of the samples with these indices that go on.
        original_of: those samples before they are augmented, for the arm ``originals``.
        views: how often each sample is in a batch.
        compile: by torch.compile, with its default mode.
    """
    device = next(model.parameters()).device
    steps, batch_size = sizes(cell, recipe.stop - recipe.start, full_steps, recipe.batch_size)
    oracle, originals, kept = Oracle(), pfb.Originals(), Kept(len(copies))
    share = pfb.window(cell.prune, recipe.start, recipe.stop)
    blocker = attach(cell, model, cut, steps, share, recipe.memory, oracle, originals)
    if compile:
        model.compile(dynamic=False)
    optimizer = optimizer_of(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps)
    for indices in itertools.islice(batches(len(copies), batch_size, views), steps):
        oracle.copies = copies[indices].to(device).float()
        if cell.arm == "originals" and original_of is not None:
            originals.show(original_of(indices))
        losses = losses_of(indices, blocker)
        if cell.arm == "weighted" and blocker is not None:
            losses = losses * blocker.weights
        losses.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        kept.count(indices, blocker)
        if blocker is not None:
            blocker.step()
    return kept


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
