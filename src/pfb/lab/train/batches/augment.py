"""Augmentation of whole batches, on the device the batch is on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def flip_and_crop(images: Tensor, flip: bool, crop: int) -> Tensor:
    """Each image of ``[N, C, S, S]`` mirrored with probability 1/2 and shifted by up to ``crop``
    pixels (reflected).
    """
    n, _, side, _ = images.shape
    if flip:
        images = torch.where(torch.rand(n, 1, 1, 1, device=images.device) < 0.5, images.flip(3), images)
    if crop:
        padded = F.pad(images, (crop,) * 4, mode="reflect")
        top, left = torch.randint(2 * crop + 1, (2, n, 1), device=images.device)
        rows = (top + torch.arange(side, device=images.device))[:, None, :, None]
        columns = (left + torch.arange(side, device=images.device))[:, None, None, :]
        samples = torch.arange(n, device=images.device)[:, None, None, None]
        channels = torch.arange(images.size(1), device=images.device)[None, :, None, None]
        images = padded[samples, channels, rows, columns]
    return images


def mix(images: Tensor, labels: Tensor, kind: str, classes: int) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019) of a batch, by torchvision; labels
    become ``[N, classes]``.

    Args:
        images: ``[N, C, H, W]``, floating point.
        labels: ``[N]`` classes.
        kind: ``none`` leaves both as they are; ``mixup``, ``cutmix``, or ``both``, one of the two
            for each batch.
        classes: number of classes.
    """
    if kind == "none":
        return images, labels
    from torchvision.transforms import v2

    mixup, cutmix = v2.MixUp(alpha=0.8, num_classes=classes), v2.CutMix(alpha=1.0, num_classes=classes)
    chosen = {"mixup": mixup, "cutmix": cutmix, "both": v2.RandomChoice([mixup, cutmix])}[kind]
    mixed_images, mixed_labels = chosen(images, labels)
    return mixed_images, mixed_labels
