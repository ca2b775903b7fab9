"""Accelerate: prune what ``prepare`` returned, and register the loader like any other object with a
state: a run that was stopped in the middle of an epoch ends as an unbroken one.

On several devices: ``accelerate launch examples/accelerate_resume.py``.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pfb


def train(folder: Path, steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
    """Train up to some step, from the start or from what lies in the folder; returns the
    weights.
    """
    in_known_order = DataLoaderConfiguration(use_seedable_sampler=True)  # as a broken-off epoch needs it
    accelerator = Accelerator(dataloader_config=in_known_order)
    set_seed(0)
    x = torch.randn(512, 20)
    data = TensorDataset(x, (x[:, :5].sum(1) > 0).long())
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader: Any = DataLoader(data, batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    memory = pfb.NeighbourMemory(170)  # at most a third of an epoch
    loader = pfb.prune_batches(loader, prune=0.4, density=memory)  # after prepare, which shares out the data
    accelerator.register_for_checkpointing(loader)

    if resume:
        accelerator.load_state(str(folder))
    while loader.pruner.steps < steps:
        loader.set_epoch(loader.pruner.steps // len(loader))
        for inputs, labels in loader:  # of the epoch that was broken off, what is left of it
            accelerator.backward(F.cross_entropy(model(inputs), labels))
            optimizer.step()
            optimizer.zero_grad()
            if loader.pruner.steps == steps:
                break
    accelerator.save_state(str(folder))
    weights = {name: value.clone() for name, value in accelerator.unwrap_model(model).state_dict().items()}
    accelerator.free_memory()
    return weights


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        unbroken = train(Path(folder) / "a", steps=64)
        train(Path(folder) / "b", steps=25)  # 16 are an epoch
        resumed = train(Path(folder) / "b", steps=64, resume=True)
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    print("the resumed run ended bit-identical")


if __name__ == "__main__":
    main()
