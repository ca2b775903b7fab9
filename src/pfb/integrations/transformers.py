"""Hugging Face Trainer and those built on it: batches are pruned before anything counts them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

import pfb

STATE = "pfb.pt"


class PrunedTrainerMixin:
    """Put before any ``transformers.Trainer``, also one of another library:

    ``class Pruned(PrunedTrainerMixin, trl.SFTTrainer): ...``

    Every training batch passes the pruner as soon as the Trainer takes it from its loader. So
    whatever comes later, such as ``num_items_in_batch`` by which losses are divided, the model, its
    labels and the Trainer's own counts, knows the kept samples alone, and the training is that of a
    plain Trainer on a loader of these. Evaluation is left alone.

    The pruner's state is saved in every checkpoint (``pfb.pt``), and a resumed training goes on
    bit-identical, in the middle of an epoch, too. A training that begins anew, such as each trial
    of ``hyperparameter_search``, begins with the pruner as it was given. A window without
    ``total_steps`` gets the Trainer's number of micro-batches. ``pruned_share`` of the latest batch
    stands beside the loss in the logs.

    Args:
        pruner: a :class:`pfb.BatchPruner`.
        args, kwargs: those of the Trainer.

    Raises:
        TypeError: ``pruner`` is something else.
        FileNotFoundError: resuming from a checkpoint without the pruner's state.

    Example: ``examples/transformers_trainer.py``, ``examples/transformers_sft.py``.
    """

    def __init__(self, *args: Any, pruner: pfb.BatchPruner, **kwargs: Any) -> None:
        if not isinstance(pruner, pfb.BatchPruner):
            raise TypeError(f"`pruner` must be a pfb.BatchPruner (got {type(pruner).__name__})")
        super().__init__(*args, **kwargs)
        self.pruner = pruner
        self._checkpoint: Any = None
        self.add_callback(_Keeper(self, pruner))  # type: ignore[attr-defined]

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        self._checkpoint = resume_from_checkpoint
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any) -> Any:
        # Not in the loader, which the Trainer replaces to skip what a resumed epoch has seen.
        return super().get_batch_samples(map(self.pruner, epoch_iterator), *args)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            chosen = self.pruner.selection
            logs = {**logs, "pruned_share": 0.0 if chosen is None else 1 - len(chosen.indices) / chosen.batch_size}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _save_rng_state(self, output_dir: str) -> None:
        """Beside the random numbers' states, which a resumed run needs in the same way."""
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        if self.args.should_save:  # type: ignore[attr-defined]
            torch.save(self.pruner.state_dict(), Path(output_dir) / STATE)


class PrunedTrainer(PrunedTrainerMixin, Trainer):
    """A ``transformers.Trainer`` whose training batches are pruned: see
    :class:`PrunedTrainerMixin`.
    """


class _Keeper(TrainerCallback):
    """Sets the pruner to where each training begins."""

    def __init__(self, trainer: Any, pruner: pfb.BatchPruner) -> None:
        self.trainer, self.pruner = trainer, pruner
        self.fresh = copy.deepcopy(pruner.state_dict())
        self.tells_length = pruner.total_steps is None and pruner.schedule.needs_total_steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.pruner.load_state_dict(self.fresh if state.global_step == 0 else self._saved(args, state))
        if self.tells_length:  # in each trial of a search anew
            self.pruner.total_steps = state.max_steps * args.gradient_accumulation_steps

    def _saved(self, args: Any, state: Any) -> dict[str, Any]:
        places = (self.trainer._checkpoint, Path(args.output_dir) / f"checkpoint-{state.global_step}")
        files = [Path(place) / STATE for place in places if isinstance(place, (str, Path))]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"no {STATE} to resume the pruner from: looked for {', '.join(map(str, files))}. Resume from a "
                "checkpoint that a pruned training wrote, or begin anew."
            )
        saved: dict[str, Any] = torch.load(found, weights_only=True, map_location="cpu")
        return saved
