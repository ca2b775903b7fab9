"""Lightning: callbacks that prune the training's batches, or step the paper's blocker, and keep
their state in Lightning's checkpoints.
"""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

import pfb

HOOK = "on_after_batch_transfer"


class PrunerCallback(pl.Callback):
    """Prune every training batch once it is on its device, before ``training_step`` and whatever
    else sees it.

    ``pl.Trainer(callbacks=[PrunerCallback(pfb.BatchPruner(prune=0.5))])`` is all: accumulated
    batches, several optimizers, LBFGS, manual optimization, precision plugins and several devices
    need nothing special, and validation is left alone. On several devices Lightning gives each its
    own part of the data as ever. The pruner's state lies in Lightning's checkpoints.

    A window without ``total_steps`` gets the number of batches that the Trainer estimates.
    ``pruned_share`` of the latest batch is logged.

    Args:
        pruner: a :class:`pfb.BatchPruner`.

    Raises:
        TypeError: ``pruner`` is something else.
        ValueError: at the start of fitting, if the schedule needs ``total_steps`` and the training
            has no end.

    Example: ``examples/lightning_pruner.py``.
    """

    def __init__(self, pruner: pfb.BatchPruner) -> None:
        if not isinstance(pruner, pfb.BatchPruner):
            raise TypeError(f"`pruner` must be a pfb.BatchPruner (got {type(pruner).__name__})")
        self.pruner = pruner
        self._holder: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if stage != "fit" or self._holder is not None:
            return
        self._holder = data if data is not None and is_overridden(HOOK, data) else pl_module
        before = getattr(self._holder, HOOK)

        def pruned(batch: Any, dataloader_idx: int) -> Any:
            batch = before(batch, dataloader_idx)
            return self.pruner(batch) if trainer.training else batch

        setattr(self._holder, HOOK, pruned)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._holder is not None:
            delattr(self._holder, HOOK)  # the class's own is seen again
            self._holder = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.pruner.total_steps is None and self.pruner.schedule.needs_total_steps:
            self.pruner.total_steps = _total_steps(trainer) * trainer.accumulate_grad_batches

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        chosen = self.pruner.selection
        pl_module.log("pruned_share", 0.0 if chosen is None else 1 - len(chosen.indices) / chosen.batch_size)

    def state_dict(self) -> dict[str, Any]:
        return self.pruner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pruner.load_state_dict(state_dict)


class BlockerCallback(pl.Callback):
    """The paper's tool: call ``blocker.step()`` once per optimizer step and save the blocker's
    state with the model's.

    Attach to a module that ``training_step`` *calls* (such as ``self.net``), not to the
    LightningModule, whose ``forward`` Lightning does not call: the first step is an error then. In
    ``training_step``, select the targets: ``loss(self.net(x), self.blocker.select(y))``.

    Args:
        blocker: what ``pfb.attach`` returned.

    Raises:
        ValueError: at the start of fitting, if there is more than one optimizer or none, or if the
            schedule needs ``total_steps`` and the training has no end, or with LBFGS.
        RuntimeError: at the first step, if ``training_step`` did not call the module that the
            blocker is attached to.
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
            "the schedule needs `total_steps`, and this Trainer has no end (got max_steps=-1 and max_epochs=-1, or a "
            "loader without length): set one of them, or pass `total_steps=`"
        )
    return int(steps)
