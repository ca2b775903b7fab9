"""The order of an epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """A random order of the training set that depends on seed and epoch alone, so that all methods
    see the same one.

    Args:
        samples: of the training set.
        seed: of the order.
        repeats: how often a sample stands in the order, in succession; an epoch of constant length
            then holds so many fewer samples (repeated augmentation).

    Attributes:
        only: the indices to load in this epoch; ``None`` for all.

    Example:
        >>> order = list(EpochSampler(6, seed=0, repeats=3))
        >>> len(order), len(set(order)), order[0] == order[1] == order[2]
        (6, 2, True)
    """

    def __init__(self, samples: int, seed: int, repeats: int = 1) -> None:
        self.samples, self.seed, self.repeats = samples, seed, repeats
        self.epoch = 0
        self.only: Tensor | None = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def random_numbers(self, purpose: int = 0) -> torch.Generator:
        """Random numbers of this seed and epoch."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) * 16 + purpose)

    def __len__(self) -> int:
        loaded = self.samples if self.only is None else len(self.only)
        return loaded // self.repeats * self.repeats

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.samples, generator=self.random_numbers())
        if self.only is not None:
            loaded = torch.zeros(self.samples, dtype=torch.bool)
            loaded[self.only] = True
            order = order[loaded[order]]
        yield from order[: len(order) // self.repeats].repeat_interleave(self.repeats).tolist()
