"""Data with near-duplicates, natural and made, each with a small model: what the grid trains on.

Groups are what is known of them: one number per training sample, equal for those that show the same
thing. Each seed draws its own training samples (and, of spoken digits, its own speakers to hold
out), so that intervals cover data and training together.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfb.lab.errors import RunError
from studies import source_code
from studies.redundancy import Clips

SetName = Literal["logs", "signs", "digits", "clips", "tail", "code"]
SETS: tuple[SetName, ...] = get_args(SetName)
CODE_ARMS = (
    *("full", "short", "small-batch", "uniform", "infobatch", "copies", "hybrid", "oracle"),
    *("removed", "removed-exact", "removed-at-random", "sampler", "sampler-found"),
)
"""Not the paper's, which need a classifier; all that is known of groups is equality."""


@dataclass(frozen=True)
class Recipe:
    """How a set is trained on, and what is judged first.

    Attributes:
        epochs: of the arm ``full``.
        batch_size: samples of a batch.
        lr: peak learning rate of SGD (momentum 0.9) under OneCycle.
        primary: the number that claims are about: ``accuracy``, ``mean_recall`` or ``nats_new``.
        title: what the set is, for tables.
        arms: those that the set has a use for; empty: all.
    """

    epochs: int
    batch_size: int
    lr: float
    primary: str
    title: str
    arms: tuple[str, ...] = ()


RECIPES: dict[SetName, Recipe] = {
    "logs": Recipe(5, 64, 0.1, "mean_recall", "log lines, events of very uneven size"),
    "signs": Recipe(6, 64, 0.1, "accuracy", "traffic signs, tracks of 30 frames each"),
    "digits": Recipe(10, 64, 0.1, "accuracy", "spoken digits, 50 takes each"),
    "clips": Recipe(10, 64, 0.1, "accuracy", "CIFAR-10 clips of 40 frames beside single images"),
    "tail": Recipe(10, 64, 0.1, "accuracy", "the same, lengths by a power law"),
    "code": Recipe(6, 64, 0.1, "nats_new", "source code, functions copied between files", CODE_ARMS),
}


@dataclass(frozen=True)
class Task:
    """One seed's data, and its model.

    Attributes:
        x, y: training samples ``[N, ...]`` as they are stored, and their classes ``[N]``, or what
            follows each byte, ``[N, T]``.
        groups: ``[N]`` int64, equal for samples that show the same thing.
        x_test, y_test: what is held out; only classes that occur in training.
        is_new: which of them are equal to no training sample, where that is asked.
        classes: number of classes.
        prepare: stored samples to what the model takes.
        augment: the same in training.
        model: makes a new one.
        cut: its first stage, for the paper's rule.
        images: whether they are pictures, for ``find_copies``.
    """

    x: Tensor
    y: Tensor
    groups: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    prepare: Callable[[Tensor], Tensor]
    augment: Callable[[Tensor], Tensor]
    model: Callable[[], nn.Module]
    cut: str
    images: bool = True
    is_new: Tensor | None = None

    @property
    def labels(self) -> Tensor | None:
        """The classes, if each sample has one."""
        return self.y if self.y.dim() == 1 else None

    @property
    def sizes(self) -> Tensor:
        """How many samples each one's group has, itself included, ``[N]``."""
        return sizes_of(self.groups)


def sizes_of(groups: Tensor) -> Tensor:
    """How many samples carry the same number, ``[N]`` int64.

    Example:
        >>> sizes_of(torch.tensor([7, 2, 7])).tolist()
        [2, 1, 2]
    """
    _, inverse, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    sizes: Tensor = counts[inverse]
    return sizes


def make(name: SetName, folder: Path, seed: int, images: str = "cifar10", tiny: bool = False) -> Task:
    """The data of one seed.

    Args:
        name: which set.
        folder: where loghub.npz, gtsrb10.npz and fsdd.npz lie.
        seed: decides what is drawn for training.
        images: of clips and tail: cifar10, or imagefolder:PATH.
        tiny: few samples, to try a study itself.

    Raises:
        RunError: a file is missing.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    if name == "logs":
        return _logs(folder, generator, 300 if tiny else 12_000)
    if name == "signs":
        return _signs(folder, generator, 12 if tiny else 226)
    if name == "digits":
        return _digits(folder, seed, generator)
    if name == "code":
        return _code(generator, *((300, 100) if tiny else (6_000, 2_000)))
    return _clips(name, images, seed, tiny)


def _logs(folder: Path, generator: torch.Generator, n: int) -> Task:
    """Lines as bytes; the groups are their events. Test: later in the files, events that were
    drawn.
    """
    data = _load(folder, "loghub")
    return _logs_of(data, torch.randperm(len(data["x_train"]), generator=generator)[:n])


def _logs_of(data: dict[str, Tensor], drawn: Tensor) -> Task:
    y, y_test = data["y_train"].long()[drawn], data["y_test"].long()
    known = torch.isin(y_test, y)
    classes = int(max(data["y_train"].max(), data["y_test"].max())) + 1
    return Task(
        x=data["x_train"][drawn],
        y=y,
        groups=y,
        x_test=data["x_test"][known],
        y_test=y_test[known],
        classes=classes,
        prepare=Tensor.long,
        augment=Tensor.long,
        model=lambda: LineReader(classes),
        cut="first",
        images=False,
    )


def log_stream(folder: Path, generator: torch.Generator, n: int | None = None) -> Task:
    """All training lines, the systems' in turn, one line each, in the order of their files; the
    seed decides which system comes first. At most ``n`` lines.
    """
    data = _load(folder, "loghub")
    system = data["system_train"].long()
    place = torch.empty_like(system)
    for one in torch.unique(system):
        here = system == one
        place[here] = torch.arange(int(here.sum()))
    turn = torch.randperm(int(system.max()) + 1, generator=generator)[system]
    return _logs_of(data, (place * len(turn) + turn).argsort(stable=True)[:n])


def reordered(task: Task, order: Tensor) -> Task:
    """The same task with its training samples in another order."""
    return dataclasses.replace(task, x=task.x[order], y=task.y[order], groups=task.groups[order])


def _signs(folder: Path, generator: torch.Generator, tracks: int) -> Task:
    """Frames of so many tracks, moved by up to two pixels; the official test holds other signs."""
    data = _load(folder, "gtsrb10")
    track = data["group_train"].long()
    known = torch.unique(track)
    chosen = known[torch.randperm(len(known), generator=generator)[:tracks]]
    here = torch.isin(track, chosen)
    classes = int(data["y_train"].max()) + 1

    def prepare(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).float() / 127.5 - 1

    return Task(
        x=data["x_train"][here],
        y=data["y_train"].long()[here],
        groups=track[here],
        x_test=data["x_test"],
        y_test=data["y_test"].long(),
        classes=classes,
        prepare=prepare,
        augment=lambda x: moved(prepare(x), 2),
        model=lambda: picture_reader(3, classes),
        cut="0",
    )


def _digits(folder: Path, seed: int, generator: torch.Generator) -> Task:
    """Log-mel pictures of spoken digits; two of the six speakers are held out, each seed others."""
    data = _load(folder, "fsdd")
    x = torch.cat([data["x_train"], data["x_test"]])
    y = torch.cat([data["y_train"], data["y_test"]]).long()
    group = torch.cat([data["group_train"], data["group_test"]]).long()
    speaker = torch.cat([data["speaker_train"], data["speaker_test"]]).long()
    pairs = list(itertools.combinations(torch.unique(speaker).tolist(), 2))
    out = torch.isin(speaker, torch.tensor(pairs[(4 * seed + 1) % len(pairs)]))  # neighbours in the list share one
    mean, std = x[~out].float().mean(), x[~out].float().std()

    def prepare(x: Tensor) -> Tensor:
        return ((x.float() - mean) / std)[:, None]

    return Task(
        x=x[~out],
        y=y[~out],
        groups=group[~out],
        x_test=x[out],
        y_test=y[out],
        classes=10,
        prepare=prepare,
        augment=lambda x: moved(prepare(x), 2),
        model=lambda: picture_reader(1, 10),
        cut="0",
    )


def _code(generator: torch.Generator, train: int, test: int) -> Task:
    """Beginnings of functions, whose next byte is asked; files of other models are held out."""
    x, x_test = source_code.drawn(generator, train, test)
    return Task(
        x=x[:, :-1],
        y=x[:, 1:].long(),
        groups=source_code.groups_of(x),
        x_test=x_test[:, :-1],
        y_test=x_test[:, 1:].long(),
        classes=source_code.BYTES,
        prepare=Tensor.long,
        augment=Tensor.long,
        model=source_code.NextByte,
        cut="embed",
        images=False,
        is_new=source_code.is_new(x_test, x),
    )


def _clips(name: SetName, images: str, seed: int, tiny: bool) -> Task:
    sizes = {"clips": 10, "frames": 10, "singles": 50} if tiny else {"clips": 100, "frames": 40, "singles": 2000}
    made = Clips(images, **sizes, tail=1.0 if name == "tail" else 0.0, seed=seed)
    source, groups = made.source()
    train: Any = source.train
    test: Any = source.test
    classes = len(source.classes)
    flip = images != "digits"
    channels = train.images.size(1)

    def prepare(x: Tensor) -> Tensor:
        return x.float() / 127.5 - 1

    def augment(x: Tensor) -> Tensor:
        x = moved(prepare(x), 4, "reflect" if x.size(-1) > 8 else "replicate")
        back = (torch.rand(len(x)) < 0.5)[:, None, None, None] if flip else torch.zeros(len(x), 1, 1, 1).bool()
        return torch.where(back, x.flip(3), x)

    return Task(
        x=train.images,
        y=train.labels,
        groups=groups,
        x_test=test.images,
        y_test=test.labels,
        classes=classes,
        prepare=prepare,
        augment=augment,
        model=lambda: picture_reader(channels, classes, 16),
        cut="0",
    )


def moved(images: Tensor, most: int, mode: str = "replicate") -> Tensor:
    """Each image ``[N, C, H, W]`` moved by up to ``most`` pixels to each side, by the global random
    numbers.
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, (most,) * 4, mode=mode)
    down, right = torch.randint(2 * most + 1, (2, n, 1))
    rows = (down + torch.arange(height))[:, None, :, None]
    columns = (right + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None], rows, columns]


class LineReader(nn.Module):
    """A convolutional network on bytes (TextCNN) that names a class."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 16)
        self.first = nn.Sequential(nn.Conv1d(16, width, 5, 2, 2), nn.BatchNorm1d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv1d(width, 2 * width, 5, 2, 2), nn.BatchNorm1d(2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Bytes ``[N, T]`` int64 to logits ``[N, classes]``."""
        deep = self.second(self.first(self.embed(x).transpose(1, 2)))
        return self.head(deep.amax(2))  # type: ignore[no-any-return]


def picture_reader(channels: int, classes: int, width: int = 8) -> nn.Module:
    """A small convolutional network for pictures, of any size."""

    def stage(inside: int, outside: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inside, outside, 3, 2, 1), nn.BatchNorm2d(outside), nn.ReLU())

    stages = stage(channels, width), stage(width, 2 * width), stage(2 * width, 4 * width)
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, classes))


def _load(folder: Path, name: str) -> dict[str, Tensor]:
    place = folder / f"{name}.npz"
    if not place.exists():
        raise RunError(f"--folder must hold {name}.npz, see docs/redundancy.md (got {folder})")
    with np.load(place, allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "iufb"}
