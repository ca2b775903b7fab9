"""Images as tensors in memory: normalised, augmented on the device, and class-balanced subsets."""

from __future__ import annotations

import torch
from torch import Tensor

from pfb.lab.errors import RunError
from pfb.lab.train.batches.augment import flip_and_crop
from pfb.lab.train.data.source import InMemory, Source, unchanged

SMALL_IMAGE = 64
"""Up to this side images are kept in memory, and a ResNet of torchvision gets the CIFAR stem."""
NORMALISED_BY = 10_000
"""Mean and standard deviation of the pixels are taken over at most so many images."""


def in_memory(train: InMemory, test: InMemory, classes: list[str], augment: bool, flip: bool = True) -> Source:
    """A source of images ``[N, C, S, S]`` uint8 that are normalised by the training set's mean and
    standard deviation.

    Args:
        train, test: the images and a class for each.
        classes: names of the classes.
        augment: shift each training image by up to an eighth of its side at random.
        flip: mirror half of them, too, if ``augment``.
    """
    _, channels, side, _ = train.images.shape
    spread = train.images[:: -(-len(train) // NORMALISED_BY)].float() / 255
    mean, std = spread.mean((0, 2, 3))[:, None, None], spread.std((0, 2, 3))[:, None, None].clamp_min(1e-3)

    def normalise(images: Tensor) -> Tensor:
        return (images.float() / 255 - mean.to(images.device)) / std.to(images.device)

    def augmented(images: Tensor) -> Tensor:
        return flip_and_crop(normalise(images), flip, crop=max(1, side // 8))

    return Source(
        train, test, classes, channels, side, augmented if augment else normalise, normalise, collate=unchanged
    )


def subset(train: InMemory, n: int | None, classes: int) -> InMemory:
    """The first samples of every class, ``n`` in all; ``None`` for the whole set."""
    if n is None:
        return train
    chosen = class_balanced(train.labels, n, classes)
    return InMemory(train.images[chosen], train.labels[chosen])


def class_balanced(labels: Tensor, n: int, classes: int) -> Tensor:
    """Indices of the first samples of every class, ``n`` in all, in their order.

    Not a stratified split, which keeps the classes' shares: here all classes count the same as long
    as they last.

    Raises:
        RunError: more samples than there are.

    Example:
        >>> import torch
        >>> class_balanced(torch.tensor([0, 0, 0, 1, 0, 1]), 4, classes=2)
        tensor([0, 1, 3, 5])
    """
    if n > len(labels):
        raise RunError(f"--train-samples must be at most the data set's size {len(labels)} (got {n})")
    rank_in_class = torch.zeros_like(labels)
    for c in range(classes):
        members = labels == c
        rank_in_class[members] = torch.arange(int(members.sum()))
    return torch.argsort(rank_in_class, stable=True)[:n].sort().values
