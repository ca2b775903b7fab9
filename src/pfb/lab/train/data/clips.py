"""Near-equal frames of one image, as a camera takes them: data of which it is known what repeats
itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pfb.lab.train.data.images import in_memory, subset
from pfb.lab.train.data.packaged import digits
from pfb.lab.train.data.source import InMemory, Source
from pfb.lab.train.options.config import TrainConfig

CLIPS, FRAMES, SINGLES = 30, 40, 400


def digit_clips(config: TrainConfig) -> Source:
    """Scikit-learn's digits, of which 30 are clips of 40 frames beside 400 single ones; the test
    set is that of the digits.
    """
    source = digits(TrainConfig(data="digits"))
    train, test = source.train, source.test
    assert isinstance(train, InMemory)
    assert isinstance(test, InMemory)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(train), generator=generator)[: CLIPS + SINGLES]
    shown = torch.cat([chosen[:CLIPS].repeat_interleave(FRAMES), chosen[CLIPS:]])
    images = train.images[shown]
    images[: CLIPS * FRAMES] = frames(images[: CLIPS * FRAMES], generator, shift=0)
    parts = subset(InMemory(images, train.labels[shown]), config.train_samples, len(source.classes))
    return in_memory(parts, test, source.classes, config.augment, flip=False)


def frames(
    images: Tensor, generator: torch.Generator, shift: int = 1, light: float = 0.03, noise: float = 3.0
) -> Tensor:
    """Each image ``[N, C, H, W]`` uint8 as a camera might have taken it.

    Args:
        images: as they are.
        generator: of what changes.
        shift: largest move to each side, in pixels; edges are reflected.
        light: largest relative change of light.
        noise: standard deviation of the noise, in grey levels of 255.
    """
    n, channels, height, width = images.shape
    padded = F.pad(images.float(), (shift,) * 4, mode="reflect") if shift else images.float()
    down, right = torch.randint(2 * shift + 1, (2, n, 1), generator=generator)
    rows = (down + torch.arange(height))[:, None, :, None]
    columns = (right + torch.arange(width))[:, None, None, :]
    moved = padded[torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None], rows, columns]
    lit = 1 + light * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    grain = noise * torch.randn(moved.shape, generator=generator)
    return (moved * lit + grain).round().clamp(0, 255).to(torch.uint8)
