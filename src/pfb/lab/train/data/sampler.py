"""The order of an epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """A random order of the training set that depends on seed and epoch alone, so that all methods
    see the same one.

    Attributes:
        only: the indices to load in this epoch; ``None`` for all.
    """

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seed = samples, seed
        self.epoch = 0
        self.only: Tensor | None = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def random_numbers(self, purpose: int = 0) -> torch.Generator:
        """Random numbers of this seed and epoch."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) * 16 + purpose)

    def __len__(self) -> int:
        return self.samples if self.only is None else len(self.only)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.samples, generator=self.random_numbers())
        if self.only is not None:
            loaded = torch.zeros(self.samples, dtype=torch.bool)
            loaded[self.only] = True
            order = order[loaded[order]]
        yield from order.tolist()
