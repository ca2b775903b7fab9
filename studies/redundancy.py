"""Images whose redundancy is known: clips of near-equal frames among single images."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfb.lab.bench import checks
from pfb.lab.errors import RunError
from pfb.lab.train.data import load
from pfb.lab.train.data.clips import frames
from pfb.lab.train.data.images import in_memory
from pfb.lab.train.data.source import InMemory, Source
from pfb.lab.train.options.config import TrainConfig, without_folders


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
    seed: int = 0
    """Decides which images, and their frames."""

    def __post_init__(self) -> None:
        checks.at_least(0, clips=self.clips)
        checks.at_least(1, frames=self.frames, singles=self.singles)
        if self.tail < 0:
            raise RunError(f"--clips.tail must be at least 0 (got {self.tail})")

    @property
    def distinct(self) -> Clips:
        """As many samples, of which none is another's copy."""
        return dataclasses.replace(self, clips=0, singles=self.clips * self.frames + self.singles)

    def published(self) -> dict[str, Any]:
        """The settings without the place of the folder."""
        return without_folders(dataclasses.asdict(self))

    def source(self) -> tuple[Source, Tensor]:
        """The data, and which clip each training sample is of, ``[N]``; a single image is a clip
        of its own.

        Raises:
            RunError: too few images, or such as are not kept in memory.
        """
        source = _read(self.data)
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
        groups = torch.arange(self.clips + len(rest))
        groups = torch.cat([groups[: self.clips].repeat_interleave(lengths), groups[self.clips :]])
        augmented = in_memory(InMemory(images, labels), test, source.classes, augment=True, flip=self.data != "digits")
        return augmented, groups

    def _lengths(self) -> Tensor:
        """Frames of each clip."""
        if self.tail == 0:
            return torch.full((self.clips,), self.frames)
        parts = torch.arange(1, self.clips + 1, dtype=torch.float64) ** -self.tail
        return (self.clips * self.frames * parts / parts.sum()).round().long().clamp_min(2)


@functools.cache
def _read(data: str) -> Source:
    return load(TrainConfig(data=data))
