"""Images whose redundancy is known: clips of near-equal frames among single images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfb.lab.bench import checks
from pfb.lab.errors import RunError
from pfb.lab.train.config import TrainConfig, without_folders
from pfb.lab.train.data import load
from pfb.lab.train.data.clips import frames
from pfb.lab.train.data.images import in_memory
from pfb.lab.train.data.source import InMemory, Source


@dataclass(frozen=True)
class Clips:
    """Frames differ as those of a camera do: moved by up to a pixel, a little lighter or darker,
    and with noise of their own.
    """

    data: str = "cifar10"
    """cifar10, cifar100, digits or imagefolder:PATH of small images; the test set is untouched."""
    clips: int = 200
    """Images that become clips; none for distinct images alone."""
    frames: int = 40
    """Frames of each."""
    singles: int = 4000
    """Images that stay alone; without clips, as many as there would be samples."""
    light: float = 0.03
    """Largest relative change of light."""
    noise: float = 3.0
    """Standard deviation of the noise, in grey levels of 255."""
    tail: float = 0.0
    """0: all clips are equally long. Else the k-th has a length in proportion to k ** -tail, at
    least 2 frames, and --clips.frames in the mean.
    """
    outliers: float = 0.0
    """Share of the samples that are made noise."""
    mislabelled: float = 0.0
    """Share of the samples that get a class at random."""
    imbalance: float = 1.0
    """The rarest class has this part of the samples of the most frequent; in between by equal
    factors. Samples beyond are left out.
    """
    seed: int = 0
    """Decides which images, and their frames."""

    def __post_init__(self) -> None:
        checks.at_least(0, clips=self.clips)
        checks.at_least(1, frames=self.frames, singles=self.singles)
        checks.shares(outliers=self.outliers, mislabelled=self.mislabelled)
        if not (self.tail >= 0 and 0 < self.imbalance <= 1):
            raise RunError(
                f"--clips.tail must be at least 0 and --clips.imbalance in (0, 1] (got {self.tail}, {self.imbalance})"
            )

    @property
    def distinct(self) -> Clips:
        """As many samples, of which none is another's copy."""
        return dataclasses.replace(self, clips=0, singles=self.clips * self.frames + self.singles)

    def published(self) -> dict[str, Any]:
        """The settings without the place of the folder."""
        return without_folders(dataclasses.asdict(self))

    def source(self) -> tuple[Source, Tensor]:
        """The data, and how many frames each training sample's clip has, ``[N]``; 1 for a single
        image.

        Raises:
            RunError: too few images, or such as are not kept in memory.
        """
        source = load(TrainConfig(data=self.data))
        train, test = source.train, source.test
        if not isinstance(train, InMemory) or not isinstance(test, InMemory) or train.images.dtype != torch.uint8:
            raise RunError(f"--data must hold small images with a class each (got {self.data!r})")
        if self.clips + self.singles > len(train):
            raise RunError(
                f"--data holds {len(train)} images, --clips and --singles ask for {self.clips + self.singles}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(train), generator=generator)[: self.clips + self.singles]
        first, rest = chosen[: self.clips], chosen[self.clips :]
        lengths = self._lengths()
        shown = train.images[first.repeat_interleave(lengths)]
        shots = frames(shown, generator, light=self.light, noise=self.noise)
        images = torch.cat([shots, train.images[rest]])
        labels = torch.cat([train.labels[first].repeat_interleave(lengths), train.labels[rest]])
        copies = torch.cat([lengths.repeat_interleave(lengths), torch.ones(len(rest), dtype=torch.long)])
        noise = torch.rand(len(images), generator=generator) < self.outliers
        images[noise] = torch.randint(256, images[noise].shape, generator=generator, dtype=torch.uint8)
        wrong = torch.rand(len(images), generator=generator) < self.mislabelled
        labels[wrong] = torch.randint(len(source.classes), (int(wrong.sum()),), generator=generator)
        if self.imbalance < 1:
            part = self.imbalance ** (labels / (len(source.classes) - 1))
            there = torch.rand(len(images), generator=generator) < part
            images, labels, copies = images[there], labels[there], copies[there]
        augmented = in_memory(InMemory(images, labels), test, source.classes, augment=True, flip=self.data != "digits")
        return augmented, copies

    def _lengths(self) -> Tensor:
        """Frames of each clip."""
        if self.tail == 0:
            return torch.full((self.clips,), self.frames)
        parts = torch.arange(1, self.clips + 1, dtype=torch.float64) ** -self.tail
        return (self.clips * self.frames * parts / parts.sum()).round().long().clamp_min(2)


STRONG = ("TrivialAugment", "random resized crops", "colors changed")


def strongly_augmented(images: Tensor, how: str) -> Tensor:
    """Images ``[N, C, S, S]`` uint8, each changed on its own by one of ``STRONG``, as torchvision's
    reference scripts and contrastive learning do.
    """
    from torchvision.transforms import v2

    change = {
        "TrivialAugment": v2.TrivialAugmentWide,
        "random resized crops": lambda: v2.RandomResizedCrop(images.shape[-2:]),
        "colors changed": lambda: v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    }[how]()
    return torch.stack([change(image) for image in images])
