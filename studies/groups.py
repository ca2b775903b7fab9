"""Who is starved? The share kept of groups that are more alike than the rest, rare, or copies,
where half of each batch is stopped; without any training.

The claim, written before the seeds of this study were run; constants were swept on other draws
(seed 100). With the scale by own views, at a memory of 4,096 and half stopped:

- clips of 40 frames, mirrored and cropped: area under the curve of frames against single images
  at least 0.98, at most 0.28 of the frames kept and at least 0.96 of the single images;
- near-copies in clusters that lie far apart: area under the curve above 0.95;
- texts of 40 tokens of which 2 to 4 differ from a template: area at least 0.98, at most 0.28 kept;
- every group without copies keeps above 0.40 (at random: 0.50): night, sky, another site, a
  cluster, chirps, machine faults, rare levels, fraud;
- events of still cameras and tiny defects are kept above the rest;
- no class of distinct pictures keeps less than 0.42;
- judging costs at most twice of what it does without own views.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from torch import Tensor

import pfb
from pfb.features.sketch import Sketch
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On
from pfb.lab.errors import RunError
from pfb.lab.train.data import load
from pfb.lab.train.data.source import InMemory
from pfb.lab.train.options.config import TrainConfig, without_folders
from pfb.selection.sampling import drawn
from pfb.utils.timing import clock_of, interleaved_seconds
from studies.group_data import GROUPS, Goal, Grouped, Pictures, augment

SCALES = {"without own views": False, "by own views": True}
DRAWS = 4  # of each batch, which are averaged
MOST_COST = 2.0


@dataclass(frozen=True)
class GroupsConfig:
    """Stream each kind of data past a memory for some epochs, and count who is kept."""

    data: str = "cifar10"
    """cifar10, cifar100, digits or imagefolder:PATH of small images, of which pictures are made."""
    groups: tuple[str, ...] = tuple(GROUPS)
    seeds: tuple[int, ...] = (0, 1, 2)
    """Decide the data, their order, and the draws."""
    samples: int = 12_288
    """Of each kind of data: three times the memory."""
    memory: int = 4096
    batch_size: int = 128
    epochs: int = 2
    """Whoever comes by before the memory is full is not counted."""
    repeats: int = 20
    """Timed batches."""
    on: On = field(default_factory=Device)
    out: Path = Path("runs/groups.json")
    """All numbers (.json) and, beside it, the table (.md) and the figure (.png)."""

    def __post_init__(self) -> None:
        self.on.refuse("precision", "channels_last")
        checks.known(GROUPS, groups=self.groups)
        checks.at_least(0, seeds=self.seeds)
        checks.at_least(2, samples=self.samples, memory=self.memory, batch_size=self.batch_size)
        checks.at_least(1, epochs=self.epochs, repeats=self.repeats)


def run(config: GroupsConfig) -> Path:
    """Stream, count, and write numbers, table and figure; returns the table's path."""
    device = config.on.start()
    pictures = _pictures(config.data)
    rows = [
        {"data": name, "seed": seed, "scale": scale, **found}
        for name in config.groups
        for seed in config.seeds
        for scale, found in _streamed(name, pictures, seed, config, device).items()
    ]
    goals = {name: asdict(_goal(name, pictures)) for name in config.groups}
    settings = without_folders(asdict(config))
    cost = _cost(config, device)
    return output.write(
        config.out, {**output.origin(settings, device), "goals": goals, "cost": cost, "rows": rows}, render, draw
    )


def render(numbers: dict[str, Any]) -> str:
    """Markdown table of shares and areas, by group and scale, and the cost."""
    lines = []
    for name, goal in numbers["goals"].items():
        cells = []
        for scale in SCALES:
            found = _mean(numbers, name, scale)
            shown = f"{found['group']:.2f} / {found['rest']:.2f}"
            if found["auc"] is not None:
                shown += f", area {found['auc']:.3f}"
            cells.append(f"{shown} {'met' if not missed(found, goal) else 'missed'}")
        lines.append([name, *cells, wanted(goal)])
    table = output.table(["kept: group / rest", *SCALES, "goal"], lines)
    cost = numbers["cost"]
    ratio = cost["by own views"] / cost["without own views"]
    told = " beside ".join(f"{1000 * cost[scale]:.2f} ms {scale}" for scale in reversed(SCALES))
    verdict = "met" if ratio <= MOST_COST else "missed"
    return f"{table}\nTo judge a batch takes {told}: {ratio:.2f} times (at most {MOST_COST:g}: {verdict}).\n"


def draw(numbers: dict[str, Any]) -> Figure:
    """Share kept of each group, by scale."""
    figure, (axes,) = output.panels(8, 4)
    names = list(numbers["goals"])
    for i, scale in enumerate(SCALES):
        kept = [_mean(numbers, name, scale)["group"] for name in names]
        axes.bar([k + 0.4 * i - 0.2 for k in range(len(names))], kept, 0.4, label=scale)
    axes.axhline(0.5, color="black", linestyle="--", linewidth=0.9, label="at random")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_ylabel("share of the group kept")
    axes.legend(fontsize=8)
    return figure


def missed(found: dict[str, Any], goal: dict[str, Any]) -> list[str]:
    """Parts of a goal that were not reached.

    Example:
        >>> missed({"group": 0.3, "rest": 0.5, "auc": None}, asdict(Goal(group=0.4)))
        ['group']
    """
    reached = {
        "auc": found["auc"] is None or found["auc"] >= goal["auc"],
        "group": found["group"] >= goal["group"],
        "most": found["group"] <= goal["most"],
        "rest": found["rest"] >= goal["rest"],
        "above": not goal["above"] or found["group"] > found["rest"],
    }
    return [part for part, ok in reached.items() if not ok]


def wanted(goal: dict[str, Any]) -> str:
    """A goal in words.

    Example:
        >>> wanted(asdict(Goal(group=0.4, above=True)))
        'at least 0.40, above the rest'
    """
    parts = [
        f"area {goal['auc']:g}" if goal["auc"] else "",
        f"at least {goal['group']:.2f}" if goal["group"] else "",
        f"at most {goal['most']:.2f}" if goal["most"] < 1 else "",
        f"rest {goal['rest']:.2f}" if goal["rest"] else "",
        "above the rest" if goal["above"] else "",
    ]
    return ", ".join(part for part in parts if part)


def shares(data: Grouped, log_weights: list[tuple[Tensor, Tensor]], generator: torch.Generator) -> dict[str, Any]:
    """Share kept of the group and of the rest, and, where the group are copies, the area under the
    curve; of classes, those of the one that keeps least and the one that keeps most.

    Args:
        data: the samples.
        log_weights: of each batch, its samples and the logarithms of their weights.
        generator: of the draws.
    """
    kept, met = (torch.zeros(len(data), dtype=torch.float64) for _ in range(2))
    for rows, weights in log_weights:
        for _ in range(DRAWS):
            chosen = drawn(weights, generator).topk(len(rows) - len(rows) // 2).indices
            kept[rows[chosen]] += 1
            met[rows] += 1
    by = [float(kept[data.groups == k].sum() / met[data.groups == k].sum()) for k in sorted(set(data.groups.tolist()))]
    if data.classes:
        return {"group": min(by), "rest": max(by), "auc": None}
    rows, weights = (torch.cat(parts) for parts in zip(*log_weights, strict=True))
    auc = float(roc_auc_score((data.groups[rows] == 1).numpy(), -weights.numpy())) if data.copies else None
    return {"group": by[1], "rest": by[0], "auc": auc}


def stream(
    data: Grouped, memory: int, batch_size: int, epochs: int, generator: torch.Generator, device: torch.device
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Logarithms of the weights of each batch, once the memory is full, by scale."""
    told: dict[str, list[tuple[Tensor, Tensor]]] = {scale: [] for scale in SCALES}
    remembered, sketch, rule, seen = pfb.NeighbourMemory(memory), Sketch(), pfb.InverseDensity(), 0
    changes = torch.Generator(device).manual_seed(generator.initial_seed())
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(data), generator=generator), batch_size):
            x = data.x[rows].to(device)
            x = augment(x) if data.augmented else x
            features = sketch(x)
            if seen >= memory:
                own = sketch.own_view(x, changes)
                for scale, views in SCALES.items():
                    weights = rule.log_weights(features, remembered, own if views else None)
                    told[scale].append((rows, weights.cpu()))
            remembered.accumulate(features)
            remembered.apply()
            seen += len(rows)
    return told


def _streamed(
    name: str, pictures: Pictures, seed: int, config: GroupsConfig, device: torch.device
) -> dict[str, dict[str, Any]]:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data = GROUPS[name](config.samples, pictures, generator)
    told = stream(data, config.memory, config.batch_size, config.epochs, generator, device)
    return {scale: shares(data, told[scale], generator) for scale in SCALES}


def _goal(name: str, pictures: Pictures) -> Goal:
    return GROUPS[name](320, pictures, torch.Generator().manual_seed(0)).goal


def _mean(numbers: dict[str, Any], name: str, scale: str) -> dict[str, Any]:
    """Over seeds; of classes, so, of those that keep least in each."""
    rows = [row for row in numbers["rows"] if (row["data"], row["scale"]) == (name, scale)]
    auc = None if rows[0]["auc"] is None else statistics.fmean(row["auc"] for row in rows)
    return {"auc": auc, **{part: statistics.fmean(row[part] for row in rows) for part in ("group", "rest")}}


def _cost(config: GroupsConfig, device: torch.device) -> dict[str, float]:
    """Seconds to judge a batch of images of 32 pixels, timed in turns."""
    x, sketch = torch.randn(config.batch_size, 3, 32, 32, device=device), Sketch()
    memory = pfb.NeighbourMemory(config.memory)
    for _ in range(-(-config.memory // config.batch_size)):
        memory.accumulate(sketch(torch.randn_like(x)))
        memory.apply()
    timed = {
        "without own views": lambda: memory.near_copies(sketch(x)),
        "by own views": lambda: memory.near_copies(sketch(x), sketch.own_view(x)),
    }
    seconds = interleaved_seconds(timed, device, config.repeats, 1, clock_of(config.on.clock))
    return {scale: statistics.median(taken) for scale, taken in seconds.items()}


def _pictures(data: str) -> Pictures:
    train = load(TrainConfig(data=data)).train
    if not isinstance(train, InMemory) or train.images.dtype != torch.uint8:
        raise RunError(f"--data must hold small images with a class each (got {data!r})")
    return Pictures(train.images, train.labels)
