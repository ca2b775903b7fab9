"""Hugging Face Trainer: steps the blocker, keeps its state in checkpoints, and normalizes the loss
by the label items that were kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback

import pfb

STATE = "pfb.pt"


class BlockingTrainer(Trainer):
    """A ``Trainer`` for a model with a blocker attached in ``shallow="recompute"``, where labels
    lie inside the forward.

    The loss is the one that a plain ``Trainer`` computes on the kept samples. Where the model
    divides by ``num_items_in_batch``, that number counts the kept label items: every micro-batch
    contributes the mean over what it kept, weighted by the label items it held before pruning.
    Under gradient accumulation and on several ranks the weights come from before pruning because
    the first micro-batch goes backward before the last has been selected. Models that take a plain
    mean are left alone.

    ``pruned_share`` of the latest batch stands beside the loss in the logs. A schedule that needs
    ``total_steps`` and was given none gets the Trainer's ``max_steps``.

    Args:
        blocker: what ``pfb.attach(model, shallow="recompute")`` returned.
        args, kwargs: those of ``transformers.Trainer``.

    Raises:
        ValueError: the blocker reuses the shallow part, or the arguments take the loss out of the
            model (``label_smoothing_factor``, ``compute_loss_func``).
        FileNotFoundError: resuming from a checkpoint without the blocker's state.

    Example: ``examples/transformers_trainer.py``.
    """

    def __init__(self, *args: Any, blocker: pfb.Blocker, **kwargs: Any) -> None:
        if blocker.shallow != "recompute":
            raise ValueError(
                f'BlockingTrainer needs pfb.attach(..., shallow="recompute") (got {blocker.shallow!r}): labels and '
                "masks enter the model's forward and must be selected there"
            )
        super().__init__(*args, **kwargs)
        if self.args.label_smoothing_factor > 0:
            raise ValueError(
                "label_smoothing_factor takes the loss out of the model, past the selection; leave it at 0"
            )
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func takes the loss out of the model, past the selection; compute it in the model's "
                "forward"
            )
        self.blocker = blocker
        # The Trainer counts labels shifted where the loss shifts them; older releases never do.
        self._items = _ItemsInBatch(shifted=getattr(self, "_loss_shifts_labels", False))
        assert self.model is not None  # or the Trainer would have refused
        self._items.register(self.model)
        self.add_callback(_Keeper(blocker))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        with self._items.running(inputs, num_items_in_batch):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs = {**logs, "pruned_share": self.blocker.stats["pruned_share"]}
        super().log(logs, *args, **kwargs)


class _ItemsInBatch:
    """Forward pre-hook that runs after the blocker's: ``num_items_in_batch``, which the model is
    about to divide a sum by, becomes that of the labels which the model is about to see.

    It sets the number instead of scaling it, so it may run in a wrapper and again in what that
    wraps, before the selection and after it: the last one is right.
    """

    sees_kept_samples = True  # to the blocker: run before this one

    def __init__(self, shifted: bool) -> None:
        self.shifted = shifted
        self.whole: Mapping[str, Any] | None = None  # the micro-batch now running, before pruning
        self.num_items_in_batch: Tensor | int | None = None  # as the Trainer counted it

    def register(self, model: nn.Module) -> None:
        """On the model and on all inside it that may have the blocker and take labels."""
        for module in {model, *(m for m in model.modules() if isinstance(m, PreTrainedModel))}:
            module.register_forward_pre_hook(self, with_kwargs=True)

    @contextmanager
    def running(self, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None) -> Iterator[None]:
        """Within this context the model runs on the micro-batch ``inputs``."""
        if "labels" in inputs:
            self.whole, self.num_items_in_batch = inputs, num_items_in_batch
        try:
            yield
        finally:
            self.whole = self.num_items_in_batch = None

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        whole, total = self.whole, self.num_items_in_batch
        if whole is None or total is None or not {"labels", "num_items_in_batch"} <= kwargs.keys():
            return None
        if len(kwargs["labels"]) == len(whole["labels"]):  # nothing was pruned
            return None
        return args, {**kwargs, "num_items_in_batch": total * self.count(kwargs) / self.count(whole)}

    def count(self, inputs: Mapping[str, Any]) -> Tensor:
        """Label items as the Trainer counts them, but at least 1: none at all would divide 0 by
        0.
        """
        labels: Tensor = inputs["labels"]
        if "shift_labels" in inputs:
            labels = inputs["shift_labels"]
        elif self.shifted:
            labels = labels[..., 1:]
        return labels.ne(-100).sum().clamp_min(1)


class _Keeper(TrainerCallback):
    """Steps the blocker beside the optimizer; writes and reads its state beside the model's."""

    def __init__(self, blocker: pfb.Blocker) -> None:
        self.blocker = blocker

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.blocker.total_steps is None and self.blocker.schedule.needs_total_steps:
            self.blocker.total_steps = state.max_steps
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
