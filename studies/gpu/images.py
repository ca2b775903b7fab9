"""CIFAR-10 on the device: whole, a part of it, or as clips of near-equal frames.

Shape suffix: N samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from studies.gpu.packing import SIDE, decode

LIGHT, NOISE, SHIFT = 0.03, 3.0, 1  # how frames of a clip differ: part of the light, grey levels, pixels
CROP = 4  # pixels
MEAN, DEVIATION = 0.4734, 0.2516  # of all values of the training images


@dataclass
class Images:
    """Training and test images on one device.

    Attributes:
        train: ``[N, 3, 40, 40]`` uint8, padded by 4 pixels to each side for the crops.
        labels: ``[N]`` int64.
        copies: ``[N]`` float32, how many frames a sample's clip has; 1 for a single image.
        distinct: ``[M]`` int64, one sample of each clip and all single images.
        test: ``[T, 3, 32, 32]`` uint8.
        test_labels: ``[T]`` int64.
    """

    train: Tensor
    labels: Tensor
    copies: Tensor
    distinct: Tensor
    test: Tensor
    test_labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def load(data: Path, device: torch.device, kind: str, sizes: dict[str, int]) -> Images:
    """Images of a kind; which, and the frames, are the same in every run.

    Args:
        data: folder of the packed file.
        device: where they are to lie.
        kind: ``plain``; ``few``, a small part; or ``clips``: near-equal frames of some images,
            beside single ones.
        sizes: how many images are ``plain``, ``few``, ``clips``, ``singles`` and ``test``, and how
            many ``frames`` each clip has.
    """
    folder = decode(data)
    pictures = torch.from_numpy(np.load(folder / "images.npy"))
    tables = np.load(folder / "labels.npz")
    labels, n = torch.from_numpy(tables["labels"]).long(), int(tables["train"])
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(n, generator=generator)
    test = n + torch.randperm(len(labels) - n, generator=generator)[: sizes["test"]]
    clips, frames = (sizes["clips"], sizes["frames"]) if kind == "clips" else (0, 1)
    singles = order[clips : clips + sizes["singles" if kind == "clips" else kind]]
    shown = order[:clips].repeat_interleave(frames)
    x = torch.cat([film(pictures[shown], generator), pictures[singles]])
    found = Images(
        train=F.pad(x.float(), (CROP,) * 4, mode="reflect").byte(),
        labels=labels[torch.cat([shown, singles])],
        copies=torch.cat([torch.full((len(shown),), float(frames)), torch.ones(len(singles))]),
        distinct=torch.cat([torch.arange(clips) * frames, torch.arange(len(shown), len(x))]),
        test=pictures[test],
        test_labels=labels[test],
    )
    return Images(**{name: tensor.to(device) for name, tensor in vars(found).items()})


def film(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image ``[N, 3, 32, 32]`` uint8 as a camera might have taken it: moved by up to a pixel,
    a little lighter or darker, and with noise of its own.
    """
    n = len(images)
    if n == 0:
        return images
    padded = F.pad(images.float(), (SHIFT,) * 4, mode="reflect")
    down, right = torch.randint(2 * SHIFT + 1, (2, n), generator=generator)
    moved = windows(padded, down, right)
    lit = 1 + LIGHT * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    grain = NOISE * torch.randn(moved.shape, generator=generator)
    return (moved * lit + grain).round().clamp(0, 255).to(torch.uint8)


def windows(x: Tensor, down_N: Tensor, right_N: Tensor) -> Tensor:
    """A window of 32 by 32 pixels of each image ``[N, C, H, W]``, from these offsets on."""
    n, channel, at = (torch.arange(size, device=x.device) for size in (len(x), x.size(1), SIDE))
    rows = (down_N[:, None] + at)[:, None, :, None]
    columns = (right_N[:, None] + at)[:, None, None, :]
    return x[n[:, None, None, None], channel[:, None, None], rows, columns]


def augmented(padded: Tensor, generator: torch.Generator) -> Tensor:
    """Random crops ``[N, 3, 32, 32]`` of padded images, half of them mirrored; uint8 as given."""
    n, device = len(padded), padded.device
    down, right = torch.randint(2 * CROP + 1, (2, n), generator=generator, device=device)
    mirrored = torch.rand(n, 1, 1, 1, generator=generator, device=device) < 0.5
    x = windows(padded, down, right)
    return torch.where(mirrored, x.flip(3), x)


def inner(padded: Tensor) -> Tensor:
    """Padded images without their margins."""
    return padded[..., CROP:-CROP, CROP:-CROP]


def standardized(x: Tensor) -> Tensor:
    """Float32 images, channels last, in units of the deviation of all values."""
    return x.float().div_(255 * DEVIATION).sub_(MEAN / DEVIATION).contiguous(memory_format=torch.channels_last)
