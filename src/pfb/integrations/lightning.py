"""Lightning: a callback that steps the blocker and keeps its state in Lightning's checkpoints."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

import pfb


class BlockerCallback(pl.Callback):
    """Call ``blocker.step()`` once per optimizer step and save the blocker's state with the
    model's.

    Attach to a module that ``training_step`` *calls* (such as ``self.net``), not to the
    LightningModule, whose ``forward`` Lightning does not call. In ``training_step``, select the
    targets: ``loss(self.net(x), self.blocker.select(y))``. Accumulated batches, several devices and
    precision plugins need nothing special.

    Args:
        blocker: what ``pfb.attach`` returned.

    Raises:
        ValueError: at the start of fitting, if there is more than one optimizer or none.

    Example: ``examples/lightning_callback.py``.
    """

    def __init__(self, blocker: pfb.Blocker) -> None:
        self.blocker = blocker

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"BlockerCallback steps with the one optimizer (got {len(trainer.optimizers)}); with several, leave the "
                "callback out, call `blocker.step()` yourself and save `blocker.state_dict()` in `on_save_checkpoint`"
            )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self.blocker.step()

    def state_dict(self) -> dict[str, Any]:
        return self.blocker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.blocker.load_state_dict(state_dict)
