"""Data that needs no file: drawn shapes to segment, and the standard library's own text."""

from __future__ import annotations

import ast
import functools
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from pfb.lab.errors import RunError
from pfb.lab.train.data.source import InMemory, Source, unchanged
from pfb.lab.train.options.config import TrainConfig

TEST_PIECES = 1000  # of text
TEXT_LENGTH = 64  # bytes
TEXT_LIMIT = 2_000_000  # bytes
SHAPES = ["ground", "disc", "square", "triangle"]


def shapes(config: TrainConfig) -> Source:
    """Drawn pictures with their segmentation: discs, squares and triangles of any color on a noisy
    ground; 800 of them unless ``--train-samples`` says otherwise.
    """
    train, test = _draw(config.train_samples or 800, seed=0), _draw(200, seed=1)

    def normalise(images: Tensor) -> Tensor:
        return images.float() / 127.5 - 1

    side = train.images.size(-1)
    return Source(train, test, SHAPES, 3, side, normalise, normalise, unchanged, task="segmentation")


def _draw(n: int, seed: int, side: int = 64) -> InMemory:
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    images = (torch.rand(n, 3, 1, 1, generator=g) + 0.15 * torch.randn(n, 3, side, side, generator=g)).clamp(0, 1)
    masks = torch.zeros(n, side, side, dtype=torch.int64)
    for _ in range(3):
        kind = torch.randint(1, 4, (n, 1, 1), generator=g)
        radius = torch.randint(6, 14, (n, 1, 1), generator=g)
        top, left = (torch.randint(8, side - 8, (n, 1, 1), generator=g) for _ in range(2))
        dy, dx = y - top, x - left
        disc = dy**2 + dx**2 <= radius**2
        square = torch.maximum(dy.abs(), dx.abs()) <= radius
        triangle = (dy <= radius) & (2 * dx.abs() <= dy + radius)
        inside = torch.where(kind == 1, disc, torch.where(kind == 2, square, triangle))
        masks = torch.where(inside, kind, masks)
        color = torch.rand(n, 3, 1, 1, generator=g)
        images = torch.where(inside[:, None], 0.8 * color + 0.2 * images, images)
    return InMemory((images * 255).to(torch.uint8), masks)


def text(config: TrainConfig) -> Source:
    """Bytes of the documentation inside Python's standard library, in pieces; the label of a byte
    is the next one.
    """
    pieces = _standard_library_text().unfold(0, TEXT_LENGTH + 1, TEXT_LENGTH)
    cut = round(0.9 * len(pieces))
    train_pieces, test_pieces = pieces[:cut], pieces[cut:][:TEST_PIECES]
    if config.train_samples is not None:
        if config.train_samples > cut:
            raise RunError(f"--train-samples must be at most the data set's size {cut} (got {config.train_samples})")
        train_pieces = train_pieces[torch.linspace(0, cut - 1, config.train_samples).long()]
    train, test = (InMemory(p[:, :-1].clone(), p[:, 1:].clone()) for p in (train_pieces, test_pieces))
    names = [repr(chr(byte)) for byte in range(128)]
    return Source(train, test, names, 1, TEXT_LENGTH, unchanged, unchanged, unchanged, task="language")


@functools.cache
def _standard_library_text() -> Tensor:
    """ASCII codes of the docstrings of the standard library's modules, in the order of
    their names.
    """
    docs, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (doc := ast.get_docstring(node)):
                docs.append(doc)
                size += len(doc) + 2
        if size > TEXT_LIMIT:
            break
    encoded = "\n\n".join(docs).encode("ascii", errors="replace")[:TEXT_LIMIT]
    return torch.frombuffer(bytearray(encoded), dtype=torch.uint8).long()
