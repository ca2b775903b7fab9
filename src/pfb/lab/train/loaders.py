"""The three loaders of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from pfb.lab.train.config import TrainConfig
from pfb.lab.train.data import EpochSampler, Source

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
