"""Can the score see what the data repeat? How well each kind of features, in each density, tells
frames of clips from single images while a network trains.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

import pfb
from pfb.features.cut import FeatureReader, Features, channel_layers
from pfb.features.momentum import Momentum
from pfb.features.scoring_pass import output_of, scoring_mode
from pfb.features.sketch import Sketch
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On
from pfb.lab.train.models import build_for
from studies.redundancy import Clips

KINDS = ("cut", "cut-spread", "momentum", "sketch")


@dataclass(frozen=True)
class SightConfig:
    """Train on full data while every density watches the same batches; in each epoch the area under
    the curve of "this sample has a copy", 0.5 for blind and 1 for perfect, over its last samples.
    """

    clips: Clips = field(default_factory=Clips)
    model: str = "cifar-resnet8"
    cut: str = "layer1"
    features: tuple[str, ...] = KINDS
    centers: tuple[int, ...] = (64, 1024)
    """Moving centers with Silverman's rule, as in the paper."""
    memories: tuple[int, ...] = (512, 2048, 4096)
    """Sizes of the memory of neighbours."""
    epochs: int = 5
    batch_size: int = 64
    lr: float = 0.1
    """Peak learning rate of SGD under OneCycle."""
    queries: int = 2000
    """Samples at the end of each epoch that are judged."""
    seed: int = 0
    on: On = field(default_factory=Device)
    out: Path = Path("runs/sight.json")
    """All numbers (.json) and, beside it, the table (.md) and the figure (.png)."""

    def __post_init__(self) -> None:
        checks.known(KINDS, features=self.features)
        checks.at_least(2, memories=self.memories, centers=self.centers)
        checks.at_least(1, epochs=self.epochs, batch_size=self.batch_size, queries=self.queries)


@dataclass
class _Eye:
    """Features in a density; what it said of each sample since ``asked`` was emptied."""

    features: str
    density: pfb.DensityEstimator | pfb.NeighbourMemory
    name: str
    size: int
    asked: list[Tensor] = field(default_factory=list)

    def look(self, x: Tensor) -> None:
        self.asked.append(self.density.isolation(x))
        self.density.accumulate(x)
        self.density.apply()


def run(config: SightConfig) -> Path:
    """Train, look, write the numbers, the table and the figure; returns the table's path."""
    from rich.progress import track

    device = config.on.start()
    torch.manual_seed(config.seed)
    source, copies = config.clips.source()
    model = build_for(source, config.model).to(device)
    readers = {kind: _reader(kind, model, config.cut) for kind in config.features}
    eyes = [
        eye
        for kind in config.features
        for eye in (
            *(_Eye(kind, pfb.DensityEstimator(n), "centers", n) for n in config.centers),
            *(_Eye(kind, pfb.NeighbourMemory(n), "memory", n) for n in config.memories),
        )
    ]
    optimizer = torch.optim.SGD(model.parameters(), config.lr, 0.9, weight_decay=5e-4)
    steps = len(copies) // config.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps * config.epochs)
    aucs: list[list[float]] = [[] for _ in eyes]
    for _ in track(range(config.epochs), "epochs"):
        order = torch.randperm(len(copies))[: steps * config.batch_size]
        for indices in torch.split(order, config.batch_size):
            batch = source.train.__getitems__(indices.tolist())  # type: ignore[attr-defined]
            image = source.prepare_train(batch["input"].to(device))
            for kind, reader in readers.items():
                x = _read(reader, model, config.cut, image)
                for eye in eyes:
                    if eye.features == kind:
                        eye.look(x)
            F.cross_entropy(model(image), batch["label"].to(device)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            for reader in readers.values():
                reader.step(model, talk=False)
        single = (copies[order[-config.queries :]] == 1).numpy()
        for eye, auc in zip(eyes, aucs, strict=True):
            auc.append(float(roc_auc_score(single, torch.cat(eye.asked)[-config.queries :].cpu().numpy())))
            eye.asked.clear()
    numbers = {
        **output.origin(dataclasses.asdict(config), device),
        "rows": [
            {"features": eye.features, "density": eye.name, "size": eye.size, "auc": auc}
            for eye, auc in zip(eyes, aucs, strict=True)
        ],
    }
    numbers["config"]["clips"] = config.clips.published()
    return output.write(config.out, numbers, render, draw)


def render(numbers: dict[str, Any]) -> str:
    """Markdown table: the area under the curve after each epoch."""
    rows = [
        [f"`{row['features']}`", f"{row['size']:,} {DENSITIES[row['density']]}", *(f"{a:.2f}" for a in row["auc"])]
        for row in numbers["rows"]
    ]
    epochs = range(1, 1 + len(numbers["rows"][0]["auc"]))
    return output.table(["features", "density", *(f"epoch {e}" for e in epochs)], rows)


def draw(numbers: dict[str, Any]) -> Figure:
    """Over the epochs with the middle memory, and in the last epoch over the sizes."""
    figure, (over_time, by_size) = output.panels(11, 4, 2, sharey=True)
    memories = sorted({row["size"] for row in numbers["rows"] if row["density"] == "memory"})
    shown = memories[len(memories) // 2]
    for color, kind in enumerate(dict.fromkeys(row["features"] for row in numbers["rows"])):
        rows = [row for row in numbers["rows"] if row["features"] == kind]
        epochs = range(1, 1 + len(rows[0]["auc"]))
        time = next(row["auc"] for row in rows if (row["density"], row["size"]) == ("memory", shown))
        over_time.plot(epochs, time, "o-", color=f"C{color}", label=kind)
        for density, style in (("memory", "o-"), ("centers", "s--")):
            last = sorted((row["size"], row["auc"][-1]) for row in rows if row["density"] == density)
            by_size.plot(*zip(*last, strict=True), style, color=f"C{color}")
    over_time.set_xticks(range(1, 1 + len(numbers["rows"][0]["auc"])))
    over_time.set(title=f"Memory of {shown:,}", xlabel="epoch", ylabel="area under the curve: has a copy")
    by_size.set(title="Last epoch (dashed: moving centers)", xlabel="size", xscale="log")
    figure.legend(*over_time.get_legend_handles_labels(), title="features", fontsize=8, loc="outside right upper")
    return figure


DENSITIES = {"memory": "neighbours", "centers": "moving centers"}


def _reader(kind: str, model: nn.Module, cut: str) -> Features:
    layers = channel_layers(model.get_submodule(cut), model)
    if kind == "sketch":
        return Sketch()
    return Momentum(cut, layers) if kind == "momentum" else FeatureReader(layers, spread=kind == "cut-spread")


def _read(reader: Features, model: nn.Module, cut: str, image: Tensor) -> Tensor:
    """As a scoring pass reads them: in evaluation mode, without graph."""
    if reader.of == "input":
        return reader(image)
    with contextlib.ExitStack() as stack:
        stack.enter_context(reader.as_scored(model))
        stack.enter_context(scoring_mode(model, batch_statistics=False))
        return reader(output_of(model, model.get_submodule(cut), (image,), {}))
