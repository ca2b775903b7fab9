"""Source code as it lies in an installed package, and a small network that predicts its next byte.

A sample is the beginning of a function or class of the transformers package's modeling files, of
which many are copied from another model's file, word by word or with another name. Groups are those
of equal samples.
"""

from __future__ import annotations

import functools
from importlib import metadata, util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfb.lab.errors import RunError

PACKAGE = "transformers"
FILES = "models/*/modeling_*.py"
LENGTH = 128  # bytes of a sample
BYTES = 128  # what is not ASCII counts as one of them
HELD_OUT = 0.15  # of the models
BEGINS = b"def ", b"class "
APART = 1, 4, 16  # bytes between those that a stage of the network looks at


def version() -> str:
    """Of the package whose files are read.

    Raises:
        RunError: it is not installed.
    """
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise RunError(f"--set code reads the files of the package {PACKAGE}: pip install {PACKAGE}") from None


@functools.cache
def beginnings() -> tuple[Tensor, Tensor]:
    """The first 128 bytes of each function and class ``[N, 128]`` uint8, and the model (folder)
    that each is of, ``[N]``.
    """
    version()
    place = util.find_spec(PACKAGE)
    root = Path(str(place.origin)).parent if place else Path()
    windows, models = [], []
    for model, folder in enumerate(sorted({file.parent for file in root.glob(FILES)})):
        for file in sorted(folder.glob("modeling_*.py")):
            found = _of_file(file.read_bytes())
            windows += found
            models += [model] * len(found)
    x = torch.from_numpy(np.frombuffer(b"".join(windows), np.uint8).reshape(-1, LENGTH).copy())
    return x.clamp_max(BYTES - 1), torch.tensor(models)


def _of_file(text: bytes) -> list[bytes]:
    found, start = [], 0
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith(BEGINS) and start + LENGTH <= len(text):
            found.append(text[start : start + LENGTH])
        start += len(line)
    return found


def drawn(generator: torch.Generator, train: int, test: int) -> tuple[Tensor, Tensor]:
    """Samples to train on, and to judge by, those of models that are held out, ``[N, 128]`` uint8
    each.
    """
    x, model = beginnings()
    models = int(model.max()) + 1
    out = torch.randperm(models, generator=generator)[: max(1, round(HELD_OUT * models))]
    held = torch.isin(model, out)

    def some(x: Tensor, n: int) -> Tensor:
        return x[torch.randperm(len(x), generator=generator)[:n]]

    return some(x[~held], train), some(x[held], test)


def groups_of(x: Tensor) -> Tensor:
    """The same number for equal rows, ``[N]`` int64."""
    groups: Tensor = torch.unique(x, dim=0, return_inverse=True)[1]
    return groups


def is_new(x: Tensor, known: Tensor) -> Tensor:
    """Which rows of ``x`` are equal to none of ``known``, ``[N]`` bool.

    Example:
        >>> is_new(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[3, 4], [5, 6]])).tolist()
        [True, False]
    """
    there = {row.tobytes() for row in known.numpy()}
    return torch.tensor([row.tobytes() not in there for row in x.numpy()])


class NextByte(nn.Module):
    """Causal convolutions on bytes: each place sees the 43 bytes up to its own."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, 32)
        wide = zip((32, width, width), APART, strict=True)
        self.stages = nn.ModuleList(nn.Conv1d(inside, width, 3, dilation=apart) for inside, apart in wide)
        self.head = nn.Conv1d(width, BYTES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Bytes ``[N, T]`` int64 to logits ``[N, 128, T]`` of the byte that follows each."""
        deep = self.embed(x).transpose(1, 2)
        for stage, apart in zip(self.stages, APART, strict=True):
            new = F.relu(stage(F.pad(deep, (2 * apart, 0))))
            deep = new if new.size(1) != deep.size(1) else deep + new
        return self.head(deep)  # type: ignore[no-any-return]
