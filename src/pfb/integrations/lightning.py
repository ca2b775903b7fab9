"""Lightning: a callback that steps the blocker and keeps its state in Lightning's checkpoints."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer

import pfb


class BlockerCallback(pl.Callback):
    """Call ``blocker.step()`` once per optimizer step and save the blocker's state with the
    model's.

    Attach to a module that ``training_step`` *calls* (such as ``self.net``), not to the
    LightningModule, whose ``forward`` Lightning does not call: the first step is an error then. In
    ``training_step``, select the targets: ``loss(self.net(x), self.blocker.select(y))``.
    Accumulated batches, several devices and precision plugins need nothing special.

    ``pruned_share`` of the latest batch is logged with every optimizer step. A schedule that needs
    ``total_steps`` and was given none gets the number that the Trainer estimates.

    Args:
        blocker: what ``pfb.attach`` returned.

    Raises:
        ValueError: at the start of fitting, if there is more than one optimizer or none, or if the
            schedule needs ``total_steps`` and the training has no end, or with LBFGS.
        RuntimeError: at the first step, if ``training_step`` did not call the module that the
            blocker is attached to.

    Example: ``examples/lightning_callback.py``.
    """

    def __init__(self, blocker: pfb.Blocker) -> None:
        self.blocker = blocker

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"BlockerCallback steps with the one optimizer (got {len(trainer.optimizers)}); with several, leave "
                "the callback out, call `blocker.step()` yourself and save `blocker.state_dict()` in "
                "`on_save_checkpoint`"
            )
        if isinstance(getattr(trainer.optimizers[0], "optimizer", trainer.optimizers[0]), torch.optim.LBFGS):
            raise ValueError(
                "BlockerCallback cannot step beside LBFGS, which runs each batch several times per step; leave the "
                "callback out, use manual optimization, `with blocker.decide_once():` and `blocker.step()` yourself"
            )
        if self.blocker.total_steps is None and self.blocker.schedule.needs_total_steps:
            self.blocker.total_steps = _total_steps(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        selection = self.blocker.selection
        share = 0.0 if selection is None else 1 - selection.indices.numel() / selection.batch_size
        pl_module.log_dict({"pruned_share": share})
        self.blocker.step()

    def state_dict(self) -> dict[str, Any]:
        return self.blocker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.blocker.load_state_dict(state_dict)


def _total_steps(trainer: pl.Trainer) -> int:
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        raise ValueError(
            "the blocker's schedule needs `total_steps`, and this Trainer has no end (got max_steps=-1 and "
            "max_epochs=-1, or a loader without length): set one of them, or pass pfb.attach(..., total_steps=)"
        )
    return int(steps)
