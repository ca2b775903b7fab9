"""Does it pay to see what the data repeat? Accuracy on clips, and on as many distinct images, with
every twin at equal compute.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

import pfb
from pfb.cost import shallow_share, step_cost
from pfb.density import COPY
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On
from pfb.lab.train.data.source import Source
from pfb.lab.train.models import build_for
from pfb.lab.train.pairs import paired_difference
from studies.redundancy import Clips

Run = dict[str, Any]
ARMS = (
    *("full", "short", "small-batch", "fewer-views"),
    *("uniform", "paper-reuse", "paper-recompute", "inverse-density", "nearest", "oracle"),
)
MAIN = ("full", "short", "small-batch", "uniform", "paper-recompute", "inverse-density", "oracle")
CHANGES: dict[str, dict[str, Any]] = {
    "clips": {},
    "tail": {"tail": 1.0},
    "distinct": {},
    "repeated": {},
    "outliers": {"outliers": 0.1},
    "mislabelled": {"mislabelled": 0.2},
    "imbalanced": {"imbalance": 0.05},
}
"""What makes each kind of data of the clips, or, below, of as many distinct images."""
OF_CLIPS = ("clips", "tail")


@dataclass(frozen=True)
class ClipsConfig:
    """Train with every arm on every seed. A run that stands in the file of runs beside --out, with
    the same settings, is not done again; so one that was interrupted goes on.
    """

    clips: Clips = field(default_factory=Clips)
    on_data: tuple[str, ...] = ("clips", "distinct")
    """clips, or distinct: as many samples of which none is a copy. tail: clips of lengths by a
    power law. Of distinct images: repeated, each twice in a batch, with augmentations of its own;
    outliers, a tenth made noise; mislabelled, a fifth with a class at random; imbalanced, the
    rarest class a twentieth of the most frequent.
    """
    arms: tuple[str, ...] = MAIN
    """full: all data. short: fewer steps at the compute of uniform. small-batch: as many steps with
    smaller batches at that compute; fewer-views: the same with each image once. uniform,
    paper-reuse, paper-recompute, inverse-density: rules. nearest: drawn by the plain distance to
    the nearest neighbour, not put in proportion to what is usual there. oracle: drawn with weight 1
    / number of frames.
    """
    seeds: tuple[int, ...] = (0, 1, 2)
    model: str = "cifar-resnet8"
    cut: str = "layer1"
    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.1
    """Peak learning rate of SGD under OneCycle."""
    prunes: tuple[float, ...] = (0.5,)
    start: float = 0.05
    stop: float = 0.875
    memory: int = 4096
    gamma: float = 4.0
    compile: bool = False
    """By torch.compile, with its default mode."""
    on: On = field(default_factory=lambda: Device(channels_last=True))
    out: Path = Path("runs/clips.json")
    """All numbers (.json), each run as it ends (.jsonl), the table (.md) and the figure (.png)."""

    def __post_init__(self) -> None:
        checks.known(ARMS, arms=self.arms)
        checks.known(CHANGES, on_data=self.on_data)
        checks.at_least(0, seeds=self.seeds)
        checks.at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        checks.shares(prunes=self.prunes)

    def of(self, data: str) -> Clips:
        """The data of this kind."""
        base = self.clips if data in OF_CLIPS else self.clips.distinct
        return dataclasses.replace(base, **CHANGES[data])

    def cells(self) -> list[Cell]:
        """All runs asked for, seed by seed, so that an early end leaves complete pairs."""
        return [
            Cell(data, 0.0 if arm == "full" else prune, seed, arm)
            for data in self.on_data
            for seed, prune, arm in itertools.product(self.seeds, self.prunes, self.arms)
            if arm != "full" or prune == self.prunes[0]
        ]


class Cell(NamedTuple):
    """One run."""

    data: str
    prune: float
    seed: int
    arm: str


class Oracle:
    """Knows how many frames a sample's clip has; they are handed in before each forward."""

    reads = "nothing"

    def __init__(self) -> None:
        self.copies = torch.ones(0)

    def __call__(self, features: Tensor) -> Tensor:
        return _drawn(1 / self.copies)


def nearest(gamma: float) -> Callable[[Tensor, pfb.NeighbourMemory], Tensor]:
    """``InverseDensity`` without proportion."""
    return lambda features, memory: _drawn(memory.distance(features).clamp_min(COPY) ** gamma)


def run(config: ClipsConfig) -> Path:
    """Do what is missing, then write numbers, table and figure; returns the table's path."""
    device = config.on.start()
    place = config.out.with_suffix(".jsonl")
    place.parent.mkdir(parents=True, exist_ok=True)
    settings = _settings(config)
    runs = [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []
    runs = [run for run in runs if run["settings"] == settings]
    done = {_cell(run) for run in runs}
    missing = [cell for cell in config.cells() if cell not in done]
    sources = functools.cache(lambda data: config.of(data).source())
    for cell in track(missing, "runs", disable=not missing):
        ended = _train(cell, *sources(cell.data), config, device)
        runs.append({"settings": settings, **cell._asdict(), **ended})
        with place.open("a") as file:
            file.write(json.dumps(output.rounded(runs[-1])) + "\n")
    asked = set(config.cells())
    numbers = {
        **output.origin(settings, device),
        "runs": [{k: v for k, v in run.items() if k != "settings"} for run in runs if _cell(run) in asked],
    }
    return output.write(config.out, numbers, render, draw)


def _cell(run: Run) -> Cell:
    return Cell(*(run[name] for name in Cell._fields))


def _settings(config: ClipsConfig) -> dict[str, Any]:
    """What decides a run beside its cell, as it reads in the file; no folder of the machine."""
    asked = ("out", "arms", "seeds", "on_data", "prunes")
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in asked}
    settings["clips"] = config.clips.published()
    read: dict[str, Any] = json.loads(json.dumps(output.rounded(settings)))
    return read


def render(numbers: dict[str, Any]) -> str:
    """Markdown table; differences in pairs of seeds with half their 95 % interval."""
    rows = []
    for data, prune, arm in _groups(numbers):
        group = _group(numbers, data, prune, arm)
        accuracies = [100 * run["test_accuracy"] for run in group.values()]
        mean = f"{statistics.mean(accuracies):.2f} (n = {len(accuracies)})"
        against = [
            paired_difference(group, _group(numbers, data, 0.0 if other == "full" else prune, other))
            for other in AGAINST
        ]
        told = ["" if d is None else f"{d[0]:+.2f} ± {d[1]:.2f}" for d in against]
        run = next(iter(group.values()))
        kept = ["" if run[name] is None else f"{run[name]:.0%}" for name in ("frames_kept", "singles_kept")]
        rows.append([data, f"{prune:.0%}", arm, f"{run['compute']:.0%}", mean, *told, " / ".join(filter(None, kept))])
    header = ["data", "pruned", "arm", "compute", "test accuracy, %", *(f"minus {other}" for other in AGAINST)]
    return output.table([*header, "frames / singles kept"], rows)


AGAINST = ("uniform", "short", "small-batch", "full")


def draw(numbers: dict[str, Any]) -> Figure:
    """Accuracy against compute: each arm's mean and its runs."""
    kinds = list(dict.fromkeys(run["data"] for run in numbers["runs"]))
    arms = [arm for arm in ARMS if any(run["arm"] == arm for run in numbers["runs"])]
    figure, panels = output.panels(4.5 * len(kinds) + 1.5, 4, len(kinds))
    for panel, data in zip(panels, kinds, strict=True):
        for color, arm in enumerate(arms):
            groups = [
                _group(numbers, d, prune, a).values() for d, prune, a in _groups(numbers) if (d, a) == (data, arm)
            ]
            points = [(run["compute"], 100 * run["test_accuracy"]) for group in groups for run in group]
            means = sorted(
                (statistics.mean(run["compute"] for run in g), statistics.mean(100 * run["test_accuracy"] for run in g))
                for g in groups
            )
            if points:
                panel.plot(*zip(*points, strict=True), ".", color=f"C{color}", alpha=0.3)
                panel.plot(*zip(*means, strict=True), "o-", color=f"C{color}", label=arm)
        panel.set(title=data, xlabel="compute, full data = 1")
    panels[0].set_ylabel("test accuracy, %")
    named = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), fontsize=8, loc="outside right upper")
    return figure


def _groups(numbers: dict[str, Any]) -> list[tuple[str, float, str]]:
    return sorted(
        {(run["data"], run["prune"], run["arm"]) for run in numbers["runs"]},
        key=lambda group: (list(CHANGES).index(group[0]), group[1], ARMS.index(group[2])),
    )


def _group(numbers: dict[str, Any], data: str, prune: float, arm: str) -> dict[int, Run]:
    return {run["seed"]: run for run in numbers["runs"] if _cell(run)[:2] == (data, prune) and run["arm"] == arm}


def _train(cell: Cell, source: Source, copies: Tensor, config: ClipsConfig, device: torch.device) -> Run:
    """One run to its last epoch."""
    torch.manual_seed(cell.seed)
    layout = torch.channels_last if config.on.channels_last else torch.contiguous_format
    model = build_for(source, config.model).to(device).to(memory_format=layout)
    pruned = 1 - cell.prune * (config.stop - config.start)
    small = cell.arm in ("small-batch", "fewer-views")
    batch_size = max(2, round(config.batch_size * pruned)) if small else config.batch_size
    full_steps = len(copies) // config.batch_size * config.epochs
    steps = round(full_steps * pruned) if cell.arm == "short" else full_steps
    oracle = Oracle()
    blocker = _attach(cell, model, oracle, steps, config)
    if config.compile:
        model.compile(dynamic=False)
    optimizer = torch.optim.SGD(model.parameters(), config.lr, 0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps)
    train: Any = source.train
    kept, met = torch.zeros(len(copies)), torch.zeros(len(copies))
    batches = _batches(
        len(copies), batch_size, 2 if (cell.data, cell.arm != "fewer-views") == ("repeated", True) else 1
    )
    for _ in range(steps):
        indices = next(batches)
        batch = train.__getitems__(indices.tolist())
        image, label = source.prepare_train(batch["input"].to(device)), batch["label"].to(device)
        oracle.copies = copies[indices].to(device).float()
        if config.on.channels_last:
            image = image.to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.on.precision == "bf16"):
            logits = model(image)
        label = label if blocker is None else blocker.select(label)
        F.cross_entropy(logits.float(), label).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if blocker is not None:
            if blocker.selection is not None:
                met[indices] += 1
                kept[blocker.selection.select(indices.to(device)).cpu()] += 1
            blocker.step()
    rules = blocker is not None
    return {
        "compute": _compute(cell, model, source.prepare_test(train.__getitems__([0])["input"].to(device)), config),
        "frames_kept": _share(kept, met, copies > 1) if rules else None,
        "singles_kept": _share(kept, met, copies == 1) if rules else None,
        "train_accuracy": _accuracy(model, source, source.train, 2000, device),
        "test_accuracy": _accuracy(model, source, source.test, 10_000, device),
    }


def _compute(cell: Cell, model: nn.Module, image: Tensor, config: ClipsConfig) -> float:
    """Of the run by multiplications, full data = 1; sketch and choice count for nothing."""
    shallow = shallow_share(model, config.cut, image)
    wiring = "reuse" if cell.arm == "paper-reuse" else "recompute"
    scored = shallow if cell.arm.startswith("paper") else 0.0
    while_pruning = step_cost(cell.prune, scored, wiring) if cell.prune else 1.0
    return 1 + (while_pruning - 1) * (config.stop - config.start)


def _attach(cell: Cell, model: nn.Module, oracle: Oracle, steps: int, config: ClipsConfig) -> pfb.Blocker | None:
    memory = pfb.NeighbourMemory(config.memory)
    rules: dict[str, dict[str, Any]] = {
        "uniform": {"importance": pfb.Uniform()},
        "paper-reuse": {"importance": pfb.RareFirst(), "shallow": "reuse"},
        "paper-recompute": {"importance": pfb.RareFirst()},
        "inverse-density": {"importance": pfb.InverseDensity(config.gamma), "estimator": memory},
        "nearest": {"importance": nearest(config.gamma), "estimator": memory, "features": "sketch"},
        "oracle": {"importance": oracle},
    }
    if cell.arm not in rules:
        return None
    share = pfb.window(cell.prune, config.start, config.stop)
    return pfb.attach(model, config.cut, share, total_steps=steps, **{"shallow": "recompute", **rules[cell.arm]})


def _batches(samples: int, size: int, views: int = 1) -> Iterator[Tensor]:
    """Indices of a batch, each so many times; without end."""
    different = size // views
    while True:
        order = torch.randperm(samples)[: samples // different * different]
        yield from order.repeat_interleave(views).view(-1, different * views)


def _drawn(weights_N: Tensor) -> Tensor:
    return weights_N.log() - torch.empty_like(weights_N).exponential_().log()


def _share(kept: Tensor, met: Tensor, which: Tensor) -> float | None:
    return float(kept[which].sum() / met[which].sum()) if met[which].sum() > 0 else None


@torch.no_grad()
def _accuracy(model: nn.Module, source: Source, data: Any, most: int, device: torch.device) -> float:
    """Share of the samples named right, without augmentation; at most so many, spread over all."""
    model.eval()
    right, judged = 0, torch.arange(len(data))[:: -(-len(data) // most)]
    for indices in torch.split(judged, 500):
        batch = data.__getitems__(indices.tolist())
        right += int((model(source.prepare_test(batch["input"].to(device))).argmax(1).cpu() == batch["label"]).sum())
    return right / len(judged)
