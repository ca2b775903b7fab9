"""Lightning: pass the callback. The module stays as it is: ``training_step`` gets the batch without
what is left out, and the pruner's state lies in Lightning's checkpoints.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pfb
from pfb.integrations.lightning import PrunerCallback


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
        x, y = batch  # all samples
        self.log("val_accuracy", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(
    folder: str = "runs/lightning", epochs: int = 3, checkpoint: str | None = None, **options: Any
) -> tuple[Classifier, pfb.BatchPruner]:
    pl.seed_everything(0)
    x = torch.randn(640, 20)
    y = (x[:, :5].sum(1) > 0).long()
    loader = DataLoader(TensorDataset(x[:512], y[:512]), batch_size=32, shuffle=True)
    held_out = DataLoader(TensorDataset(x[512:], y[512:]), batch_size=128)
    module = Classifier()
    memory = pfb.NeighbourMemory(160)  # at most a third of an epoch
    pruner = pfb.BatchPruner(prune=0.4, density=memory)
    trainer = pl.Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=[PrunerCallback(pruner)],  # the line
        **options,
    )
    trainer.fit(module, loader, held_out, ckpt_path=checkpoint)
    share, accuracy = (float(trainer.callback_metrics[name]) for name in ("pruned_share", "val_accuracy"))
    print(f"{pruner.steps} steps, {share:.0%} of the last batch left out, accuracy {accuracy:.1%}")
    return module, pruner


if __name__ == "__main__":
    main()
