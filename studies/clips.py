"""Does it pay to see what the data repeat? Accuracy on clips, and on as many distinct images, with
every twin at equal compute.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import pfb
from pfb.cost import shallow_share
from pfb.density import COPY
from pfb.lab.bench import checks, output
from pfb.lab.bench.comparison import paired_difference
from pfb.lab.bench.setup import Device, On
from pfb.lab.train.data.source import Source
from pfb.lab.train.models import build_for
from studies.redundancy import Clips

Run = dict[str, Any]
ARMS = ("full", "short", "small-batch", "uniform", "paper", "inverse-density", "nearest", "oracle")
DATA = ("clips", "distinct")


@dataclass(frozen=True)
class ClipsConfig:
    """Train with every arm on every seed. A run that stands in the file of runs beside --out, with
    the same settings, is not done again; so one that was interrupted goes on.
    """

    clips: Clips = field(default_factory=Clips)
    on_data: tuple[str, ...] = DATA
    """clips, or distinct: as many samples of which none is a copy."""
    arms: tuple[str, ...] = ARMS
    """full: all data. short: fewer steps at the compute of uniform. small-batch: as many steps with
    smaller batches at that compute. uniform, paper, inverse-density: rules. nearest: drawn by the
    plain distance to the nearest neighbour, not put in proportion to what is usual there. oracle:
    drawn with weight 1 / number of frames.
    """
    seeds: tuple[int, ...] = (0, 1, 2)
    model: str = "cifar-resnet8"
    cut: str = "layer1"
    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.1
    """Peak learning rate of SGD under OneCycle."""
    prune: float = 0.5
    start: float = 0.05
    stop: float = 0.875
    memory: int = 4096
    gamma: float = 4.0
    on: On = field(default_factory=lambda: Device(precision="bf16", channels_last=True, threads=1))
    out: Path = Path("runs/clips.json")
    """All numbers (.json), each run as it ends (.jsonl), the table (.md) and the figure (.png)."""

    def __post_init__(self) -> None:
        checks.known(ARMS, arms=self.arms)
        checks.known(DATA, on_data=self.on_data)
        checks.at_least(0, seeds=self.seeds)
        checks.at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        checks.shares(prune=self.prune)

    @property
    def compute(self) -> float:
        """Of a run that stops samples and needs no scoring pass, full data = 1."""
        return 1 - self.prune * (self.stop - self.start)


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
    done = {(run["data"], run["seed"], run["arm"]) for run in runs}
    for data in config.on_data:
        source, copies = (config.clips if data == "clips" else config.clips.distinct).source()
        for seed, arm in itertools.product(config.seeds, config.arms):
            if (data, seed, arm) not in done:
                ended = _train(arm, seed, source, copies, config, device)
                runs.append({"settings": settings, "data": data, "seed": seed, "arm": arm, **ended})
                with place.open("a") as file:
                    file.write(json.dumps(output.rounded(runs[-1])) + "\n")
    asked = set(itertools.product(config.on_data, config.seeds, config.arms))
    numbers = {
        **output.origin(settings, device),
        "runs": [
            {k: v for k, v in run.items() if k != "settings"}
            for run in runs
            if (run["data"], run["seed"], run["arm"]) in asked
        ],
    }
    return output.write(config.out, numbers, render, draw)


def _settings(config: ClipsConfig) -> dict[str, Any]:
    """What decides a run beside arm, seed and data, as it reads in the file; no folder of the
    machine.
    """
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "arms", "seeds", "on_data")}
    settings["clips"] = config.clips.published()
    read: dict[str, Any] = json.loads(json.dumps(output.rounded(settings)))
    return read


def render(numbers: dict[str, Any]) -> str:
    """Markdown table; differences in pairs of seeds with half their 95 % interval."""
    rows = []
    for data, arm in _groups(numbers):
        group = _group(numbers, data, arm)
        accuracies = [100 * run["test_accuracy"] for run in group.values()]
        mean = f"{statistics.mean(accuracies):.2f} (n = {len(accuracies)})"
        against = [paired_difference(group, _group(numbers, data, other)) for other in ("uniform", "short", "full")]
        told = ["" if d is None else f"{d[0]:+.2f} ± {d[1]:.2f}" for d in against]
        run = next(iter(group.values()))
        kept = ["" if run[name] is None else f"{run[name]:.0%}" for name in ("frames_kept", "singles_kept")]
        rows.append([data, arm, f"{run['compute']:.0%}", mean, *told, " / ".join(filter(None, kept))])
    header = ["data", "arm", "compute", "test accuracy, %", "minus uniform", "minus short", "minus full"]
    return output.table([*header, "frames / singles kept"], rows)


def draw(numbers: dict[str, Any]) -> Figure:
    """Every run as a point, and the mean of each arm."""
    kinds = list(dict.fromkeys(run["data"] for run in numbers["runs"]))
    figure, panels = output.panels(5 * len(kinds), 3.6, len(kinds))
    for panel, data in zip(panels, kinds, strict=True):
        arms = [arm for d, arm in _groups(numbers) if d == data]
        for row, arm in enumerate(reversed(arms)):
            points = [100 * run["test_accuracy"] for run in _group(numbers, data, arm).values()]
            panel.plot(points, [row] * len(points), ".", color="C0")
            panel.plot([statistics.mean(points)], [row], "|", color="C1", markersize=16)
        panel.set_yticks(range(len(arms)), list(reversed(arms)))
        panel.set(title=data, xlabel="test accuracy, %")
    return figure


def _groups(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((run["data"], run["arm"]) for run in numbers["runs"]))


def _group(numbers: dict[str, Any], data: str, arm: str) -> dict[int, Run]:
    return {run["seed"]: run for run in numbers["runs"] if (run["data"], run["arm"]) == (data, arm)}


def _train(arm: str, seed: int, source: Source, copies: Tensor, config: ClipsConfig, device: torch.device) -> Run:
    """One run to its last epoch."""
    torch.manual_seed(seed)
    layout = torch.channels_last if config.on.channels_last else torch.contiguous_format
    model = build_for(source, config.model).to(device).to(memory_format=layout)
    batch_size = max(2, round(config.batch_size * config.compute)) if arm == "small-batch" else config.batch_size
    full_steps = len(copies) // config.batch_size * config.epochs
    steps = round(full_steps * config.compute) if arm == "short" else full_steps
    oracle = Oracle()
    blocker = _attach(arm, model, oracle, steps, config)
    optimizer = torch.optim.SGD(model.parameters(), config.lr, 0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps)
    train: Any = source.train
    shallow = shallow_share(model, config.cut, source.prepare_test(train.__getitems__([0])["input"].to(device)))
    kept, met = torch.zeros(len(copies)), torch.zeros(len(copies))
    batches = _batches(len(copies), batch_size)
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
    first_pass = shallow / 3 * (config.stop - config.start) if arm == "paper" else 0.0
    return {
        "compute": first_pass + (1.0 if arm == "full" else config.compute),
        "frames_kept": _share(kept, met, copies > 1) if rules else None,
        "singles_kept": _share(kept, met, copies == 1) if rules else None,
        "test_accuracy": _accuracy(model, source, device),
    }


def _attach(arm: str, model: nn.Module, oracle: Oracle, steps: int, config: ClipsConfig) -> pfb.Blocker | None:
    memory = pfb.NeighbourMemory(config.memory)
    rules: dict[str, dict[str, Any]] = {
        "uniform": {"importance": pfb.Uniform()},
        "paper": {"importance": pfb.RareFirst()},
        "inverse-density": {"importance": pfb.InverseDensity(config.gamma), "estimator": memory},
        "nearest": {"importance": nearest(config.gamma), "estimator": memory, "features": "sketch"},
        "oracle": {"importance": oracle},
    }
    if arm not in rules:
        return None
    share = pfb.window(config.prune, config.start, config.stop)
    return pfb.attach(model, config.cut, share, shallow="recompute", total_steps=steps, **rules[arm])


def _batches(samples: int, size: int) -> Any:
    while True:
        yield from torch.randperm(samples)[: samples // size * size].view(-1, size)


def _drawn(weights_N: Tensor) -> Tensor:
    return weights_N.log() - torch.empty_like(weights_N).exponential_().log()


def _share(kept: Tensor, met: Tensor, which: Tensor) -> float | None:
    return float(kept[which].sum() / met[which].sum()) if met[which].sum() > 0 else None


@torch.no_grad()
def _accuracy(model: nn.Module, source: Source, device: torch.device) -> float:
    model.eval()
    test: Any = source.test
    right = 0
    for indices in torch.split(torch.arange(len(test)), 500):
        batch = test.__getitems__(indices.tolist())
        right += int((model(source.prepare_test(batch["input"].to(device))).argmax(1).cpu() == batch["label"]).sum())
    return right / len(test)
