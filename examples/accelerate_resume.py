"""Accelerate: the blocker is registered like any other object with a state, and a resumed run ends
as an unbroken one.

On several devices: ``accelerate launch examples/accelerate_resume.py``.
"""

import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pfb


def train(folder: Path, epochs: int, resume: bool = False) -> dict[str, torch.Tensor]:
    """Train up to some epoch, from the start or from what lies in the folder; returns the
    weights.
    """
    accelerator = Accelerator()
    set_seed(0)
    x = torch.randn(512, 20)
    data = TensorDataset(x, (x[:, :5].sum(1) > 0).long())
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
    memory = pfb.NeighbourMemory(170)  # at most a third of an epoch
    blocker = pfb.attach(model, cut="1", prune=0.4, estimator=memory)  # before prepare
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.register_for_checkpointing(blocker)

    first = 0
    if resume:
        accelerator.load_state(str(folder))
        first = 2
    for epoch in range(first, epochs):
        loader.set_epoch(epoch)
        for inputs, labels in loader:
            loss = F.cross_entropy(model(inputs), blocker.select(labels))
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            blocker.step()
    accelerator.save_state(str(folder))
    weights = {name: value.clone() for name, value in accelerator.unwrap_model(model).state_dict().items()}
    accelerator.free_memory()
    return weights


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        unbroken = train(Path(folder) / "a", epochs=4)
        train(Path(folder) / "b", epochs=2)
        resumed = train(Path(folder) / "b", epochs=4, resume=True)
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    print("the resumed run ended bit-identical")


if __name__ == "__main__":
    main()
