"""The three loaders of a run, and how long one waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from pfb.lab.train.data import EpochSampler, Source
from pfb.lab.train.options.config import TrainConfig

TRAIN_ACCURACY_SAMPLES = 10_000


def loaders(source: Source, config: TrainConfig, sampler: EpochSampler) -> tuple[Any, Any, Any]:
    """For training, for the test, and some training samples in order, to see how well they have
    been learned.
    """
    common: dict[str, Any] = {
        "batch_size": config.batch_size,
        "num_workers": 0 if source.collate is not None else config.workers,
        "collate_fn": source.collate,
        "pin_memory": torch.cuda.is_available() and not config.cpu,
    }
    count = min(length(source.train), TRAIN_ACCURACY_SAMPLES)
    some = torch.linspace(0, length(source.train) - 1, count).long().tolist()
    return (
        DataLoader(source.train, sampler=sampler, drop_last=True, **common),
        DataLoader(source.test, shuffle=False, **common),
        DataLoader(source.train, sampler=some, **common),
    )


def length(dataset: Any) -> int:
    """Samples of a data set; PyTorch's type does not say that it has a length."""
    return len(dataset)


class Waiting:
    """The batches of a loader, and how long the device had nothing to do until each was there.

    A GPU is asked itself: what it still works on while the loader is waited for is no waiting.

    Example:
        >>> import torch
        >>> batches = Waiting([1, 2], torch.device("cpu"))
        >>> list(batches), 0 <= batches.seconds() < 1
        ([1, 2], True)
    """

    def __init__(self, loader: Any, device: torch.device) -> None:
        self.loader, self.device = loader, device
        self._waits: list[tuple[Any, Any]] = []

    def __iter__(self) -> Iterator[Any]:
        begin = self._now()
        for batch in self.loader:
            self._waits.append((begin, self._now()))
            yield batch
            begin = self._now()

    def seconds(self) -> float:
        """Of all batches so far; waits for the device."""
        if self.device.type != "cuda":
            return float(sum(end - begin for begin, end in self._waits))
        torch.cuda.synchronize(self.device)
        return float(sum(begin.elapsed_time(end) for begin, end in self._waits)) / 1000

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
