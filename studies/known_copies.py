"""Data of which it is known what is a near-copy of what: images as files, and short texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pfb.lab.train.data.clips import frames
from studies.pairs import ALONE

SINGLES, SCENES = 500, 250
WORDS, VOCABULARY, CHANGED = 40, 3000, 4
CROPPED = 0.75  # least side of a crop
SETS: dict[str, Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]]


def _clips(images: Tensor, lengths: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shown = images[: len(lengths)].repeat_interleave(lengths, 0)
    return frames(shown, generator), torch.arange(len(lengths)).repeat_interleave(lengths)


def _tail(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    parts = 1 / torch.arange(1, 51)
    return _clips(images, (1000 * parts / parts.sum()).round().long().clamp_min(2), generator)


def _exact(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return images[:SCENES].repeat(2, 1, 1, 1), torch.arange(SCENES).repeat(2)


def _cropped(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A part of each, as large as before; half of them mirrored."""
    changed = []
    side = images.size(-1)
    for image in images[:SCENES]:
        part = side - int(torch.randint(int(side * (1 - CROPPED)) + 1, (), generator=generator))
        top, left = torch.randint(side - part + 1, (2,), generator=generator).tolist()
        crop = image[None, :, top : top + part, left : left + part].float()
        whole = torch.nn.functional.interpolate(crop, size=side, mode="bilinear", antialias=True)[0]
        mirrored = bool(torch.randint(2, (), generator=generator))
        changed.append((whole.flip(-1) if mirrored else whole).round().to(torch.uint8))
    return torch.cat([images[:SCENES], torch.stack(changed)]), torch.arange(SCENES).repeat(2)


SETS = {
    "clips of 40": lambda images, g: _clips(images, torch.full((25,), 40), g),
    "clips of 5": lambda images, g: _clips(images, torch.full((100,), 5), g),
    "long tail of clips": _tail,
    "exact copies": _exact,
    "cropped and mirrored": _cropped,
}


def images_of(name: str, images: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Copies of one kind among 500 single images, shuffled: ``[N, 3, H, W]`` uint8 and the scene
    that each shows.
    """
    generator = torch.Generator().manual_seed(seed)
    images = images[torch.randperm(len(images), generator=generator)]
    copies, scene = SETS[name](images, generator)
    singles = images[-SINGLES:]
    order = torch.randperm(len(copies) + len(singles), generator=generator)
    scene = torch.cat([scene, torch.full((len(singles),), ALONE)])
    return torch.cat([copies, singles])[order], scene[order]


def write(images: Tensor, folder: Path) -> None:
    """Files ``00000.png`` and so on; equal images are equal files."""
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:05d}.png")


def tickets(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Texts of 40 words ``[N, 40]`` int64: 250 groups of four, of which 0 to 4 words are
    changed, beside 500 single ones; frequent words are as frequent as in a language. And the
    scene of each.
    """
    generator = torch.Generator().manual_seed(seed)
    frequency = 1 / torch.arange(1, VOCABULARY + 1).double()

    def drawn(n: int) -> Tensor:
        return torch.multinomial(frequency, n * WORDS, replacement=True, generator=generator).view(n, WORDS)

    copies = drawn(SCENES).repeat_interleave(4, 0)
    changes = torch.randint(CHANGED + 1, (len(copies), 1), generator=generator)
    changed = torch.rand(copies.shape, generator=generator).argsort(1).argsort(1) < changes
    copies = torch.where(changed, drawn(len(copies)), copies)
    words = torch.cat([copies, drawn(SINGLES)])
    scene = torch.cat([torch.arange(SCENES).repeat_interleave(4), torch.full((SINGLES,), ALONE)])
    order = torch.randperm(len(words), generator=generator)
    return words[order], scene[order]
