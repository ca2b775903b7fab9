"""Hugging Face Trainer: steps the blocker, keeps its state in checkpoints, and normalises the loss
by what was kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

import pfb

STATE = "pfb.pt"


class BlockingTrainer(Trainer):
    """A ``Trainer`` for a model with a blocker attached in ``shallow="recompute"``, where labels
    lie inside the forward.

    The Trainer divides a loss by the number of label items of the *whole* batch. Here it counts for
    the items of the kept samples: the mean over what was kept, weighted by the micro-batch's size
    under gradient accumulation.

    Args:
        blocker: what ``pfb.attach(model, shallow="recompute")`` returned.
        args, kwargs: those of ``transformers.Trainer``.

    Raises:
        ValueError: the blocker reuses the shallow part, or the arguments ask for the Trainer's own
            label smoothing.
        FileNotFoundError: resuming from a checkpoint without the blocker's state.

    Example: ``examples/transformers_trainer.py``.
    """

    def __init__(self, *args: Any, blocker: pfb.Blocker, **kwargs: Any) -> None:
        if blocker.shallow != "recompute":
            raise ValueError(
                f'BlockingTrainer needs pfb.attach(..., shallow="recompute") (got {blocker.shallow!r}): labels and masks '
                "enter the model's forward and must be selected there"
            )
        super().__init__(*args, **kwargs)
        if self.args.label_smoothing_factor > 0:
            raise ValueError(
                "label_smoothing_factor takes the loss out of the model, past the selection; leave it at 0"
            )
        self.blocker = blocker
        self.add_callback(_Keeper(blocker))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        labels = inputs.get("labels")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if num_items_in_batch is not None and self.model_accepts_loss_kwargs and labels is not None:
            kept = self.blocker.select(labels)
            loss = loss * labels.ne(-100).sum() / kept.ne(-100).sum().clamp_min(1)
        return (loss, outputs) if return_outputs else loss


class _Keeper(TrainerCallback):
    """Steps the blocker beside the optimizer; writes and reads its state beside the model's."""

    def __init__(self, blocker: pfb.Blocker) -> None:
        self.blocker = blocker

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            return
        places = [args.resume_from_checkpoint, Path(args.output_dir) / f"checkpoint-{state.global_step}"]
        files = [Path(place) / STATE for place in places if isinstance(place, (str, Path))]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"no {STATE} to resume the blocker from: looked for {', '.join(map(str, files))}")
        self.blocker.load_state_dict(torch.load(found, weights_only=True))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.blocker.step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            torch.save(self.blocker.state_dict(), Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE)
