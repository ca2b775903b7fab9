"""Data sets that libraries bring: scikit-learn's digits, torchvision's CIFAR."""

from __future__ import annotations

import torch

from pfb.lab.errors import RunError
from pfb.lab.train.data.images import in_memory, subset
from pfb.lab.train.data.source import InMemory, Source
from pfb.lab.train.options.config import TrainConfig

DIGITS_TEST = 360


def digits(config: TrainConfig) -> Source:
    """Scikit-learn's 1,797 digits of 8 x 8 pixels, of which 360 are the test set."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(raw.target).to(torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = (InMemory(images[part], labels[part]) for part in (order[:DIGITS_TEST], order[DIGITS_TEST:]))
    names = [str(name) for name in raw.target_names]
    return in_memory(subset(train, config.train_samples, len(names)), test, names, config.augment, flip=False)


def cifar10(config: TrainConfig) -> Source:
    """CIFAR-10 from ``--data-root``, downloaded if it is not there."""
    return _cifar("CIFAR10", config)


def cifar100(config: TrainConfig) -> Source:
    """CIFAR-100 from ``--data-root``, downloaded if it is not there."""
    return _cifar("CIFAR100", config)


def _cifar(name: str, config: TrainConfig) -> Source:
    import torchvision

    root, kind = config.data_root, getattr(torchvision.datasets, name)
    try:  # what is there already is not downloaded again
        parts = [kind(root, train=train, download=train) for train in (True, False)]
    except Exception as error:
        raise RunError(
            f"{config.data} is not whole in {root} and could not be downloaded ({error}). Put its archive "
            f"{kind.filename} there, or use --data imagefolder:PATH"
        ) from error
    train, test = (
        InMemory(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    names = list(parts[0].classes)
    return in_memory(subset(train, config.train_samples, len(names)), test, names, config.augment)
