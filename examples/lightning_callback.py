"""Lightning: attach to the network that ``training_step`` calls, and pass the callback. It steps
the blocker, logs ``pruned_share``, tells a schedule how many steps there will be, and keeps the
blocker's state in Lightning's checkpoints.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pfb
from pfb.integrations.lightning import BlockerCallback


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
        memory = pfb.NeighbourMemory(160)  # at most a third of an epoch
        self.blocker = pfb.attach(self.net, cut="1", prune=0.4, estimator=memory)

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), self.blocker.select(y))

    def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
        x, y = batch  # nothing is stopped in evaluation mode
        self.log("val_accuracy", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(folder: str = "runs/lightning", epochs: int = 3, checkpoint: str | None = None, **options: Any) -> Classifier:
    pl.seed_everything(0)
    x = torch.randn(640, 20)
    y = (x[:, :5].sum(1) > 0).long()
    loader = DataLoader(TensorDataset(x[:512], y[:512]), batch_size=32, shuffle=True)
    held_out = DataLoader(TensorDataset(x[512:], y[512:]), batch_size=128)
    module = Classifier()
    trainer = pl.Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=[BlockerCallback(module.blocker)],
        **options,
    )
    trainer.fit(module, loader, held_out, ckpt_path=checkpoint)
    share, accuracy = (float(trainer.callback_metrics[name]) for name in ("pruned_share", "val_accuracy"))
    print(f"{module.blocker.steps} steps, {share:.0%} of the last batch stopped, accuracy {accuracy:.1%}")
    return module


if __name__ == "__main__":
    main()
