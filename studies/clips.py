"""Does it pay to see what the data repeat? Accuracy on clips, and on as many distinct images, with
every twin at equal compute.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import pfb
from pfb.features.cost import shallow_share
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On
from pfb.lab.train.data.source import Source
from pfb.lab.train.models import build_for
from studies import arms, verdicts
from studies.arms import Cell
from studies.redundancy import STRONG, Clips, strongly_augmented

MAIN = ("full", "short", "small-batch", "uniform", "paper-recompute", "inverse-density", "oracle")
CHANGES: dict[str, dict[str, Any]] = {
    "clips": {},
    "tail": {"tail": 1.0},
    "strong": {},
    "distinct": {},
    "repeated": {},
    "outliers": {"outliers": 0.1},
    "mislabelled": {"mislabelled": 0.2},
    "imbalanced": {"imbalance": 0.05},
}
"""What makes each kind of data of the clips, or, below, of as many distinct images."""
OF_CLIPS = ("clips", "tail", "strong")


@dataclass(frozen=True)
class ClipsConfig:
    """Train with every arm on every seed. A run that stands in the file of runs beside --out, with
    the same settings, is not done again; so one that was interrupted goes on.
    """

    clips: Clips = field(default_factory=Clips)
    on_data: tuple[str, ...] = ("clips", "distinct")
    """clips, or distinct: as many samples of which none is a copy. tail: clips of lengths by a
    power law. strong: clips, augmented by TrivialAugment, too. Of distinct images: repeated, each
    twice in a batch, with augmentations of its own; outliers, a tenth made noise; mislabelled, a
    fifth with a class at random; imbalanced, the rarest class a twentieth of the most frequent.
    """
    arms: tuple[str, ...] = MAIN
    """full: all data. short: fewer steps at the compute of uniform. small-batch: as many steps with
    smaller batches at that compute; fewer-views: the same with each image once. uniform,
    paper-reuse, paper-recompute, inverse-density: rules. originals: inverse-density by the images
    before they are augmented. weighted: inverse-density, losses with
    weights 1 / probability. oracle: drawn with weight 1 / number of frames.
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
    compile: bool = False
    """By torch.compile, with its default mode."""
    minutes: float | None = None
    """Begin no further training after so many."""
    on: On = field(default_factory=lambda: Device(channels_last=True))
    out: Path = Path("runs/clips.json")
    """All numbers (.json), each run as it ends (.jsonl), the table (.md) and the figure (.png)."""

    def __post_init__(self) -> None:
        checks.known(arms.ARMS, arms=self.arms)
        checks.known(CHANGES, on_data=self.on_data)
        checks.at_least(0, seeds=self.seeds)
        checks.at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        checks.shares(prunes=self.prunes)

    def of(self, data: str) -> Clips:
        """The data of this kind."""
        base = self.clips if data in OF_CLIPS else self.clips.distinct
        return dataclasses.replace(base, **CHANGES[data])


METRIC = verdicts.Metric("test_accuracy", "test accuracy, %", 100)
KEPT = {"frames_kept": "frames kept", "singles_kept": "singles kept"}


def run(config: ClipsConfig) -> Path:
    """Do what is missing, then write numbers, table and figure; returns the table's path."""
    device = config.on.start()
    settings = {name: v for name, v in dataclasses.asdict(config).items() if name not in ASKED}
    settings["clips"] = config.clips.published()
    sources = functools.cache(lambda data: config.of(data).source())
    asked = arms.cells(config.on_data, config.prunes, config.seeds, config.arms)
    runs = arms.run_missing(
        asked, settings, config.out, lambda cell: _train(cell, *sources(cell.data), config, device), config.minutes
    )
    return output.write(config.out, {**output.origin(settings, device), "runs": runs}, render, draw)


ASKED = ("out", "minutes", "arms", "seeds", "on_data", "prunes")
"""Settings that say which runs, not what decides them."""


def render(numbers: dict[str, Any]) -> str:
    """Markdown table."""
    return verdicts.render(numbers["runs"], METRIC, KEPT)


def draw(numbers: dict[str, Any]) -> Figure:
    """Accuracy against compute."""
    return verdicts.draw(numbers["runs"], METRIC)


def _train(cell: Cell, source: Source, copies: Tensor, config: ClipsConfig, device: torch.device) -> arms.Run:
    """One run to its last epoch."""
    torch.manual_seed(cell.seed)
    layout = torch.channels_last if config.on.channels_last else torch.contiguous_format
    model = build_for(source, config.model).to(device).to(memory_format=layout)
    train: Any = source.train
    shallow = shallow_share(model, config.cut, source.prepare_test(train.__getitems__([0])["input"].to(device)))

    def losses_of(indices: Tensor, blocker: pfb.Blocker | None) -> Tensor:
        batch = train.__getitems__(indices.tolist())
        given = strongly_augmented(batch["input"], STRONG[0]) if cell.data == "strong" else batch["input"]
        image, label = source.prepare_train(given.to(device)), batch["label"].to(device)
        if config.on.channels_last:
            image = image.to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.on.precision == "bf16"):
            logits = model(image)
        return F.cross_entropy(logits.float(), label if blocker is None else blocker.select(label), reduction="none")

    kept = arms.train(
        cell,
        config,
        model,
        config.cut,
        len(copies) // config.batch_size * config.epochs,
        copies,
        lambda parameters: torch.optim.SGD(parameters, config.lr, 0.9, weight_decay=5e-4),
        losses_of,
        lambda indices: source.prepare_test(train.__getitems__(indices.tolist())["input"].to(device)),
        views=2 if cell.data == "repeated" and cell.arm != "fewer-views" else 1,
        compile=config.compile,
    )
    return {
        "compute": arms.compute(cell, config.stop - config.start, shallow),
        "frames_kept": kept.share(copies > 1),
        "singles_kept": kept.share(copies == 1),
        "train_accuracy": _accuracy(model, source, source.train, 2000, device),
        "test_accuracy": _accuracy(model, source, source.test, 10_000, device),
    }


@torch.no_grad()
def _accuracy(model: nn.Module, source: Source, data: Any, most: int, device: torch.device) -> float:
    """Share of the samples named right, without augmentation; at most so many, spread over all."""
    model.eval()
    right, judged = 0, torch.arange(len(data))[:: -(-len(data) // most)]
    for indices in torch.split(judged, 500):
        batch = data.__getitems__(indices.tolist())
        right += int((model(source.prepare_test(batch["input"].to(device))).argmax(1).cpu() == batch["label"]).sum())
    return right / len(judged)
