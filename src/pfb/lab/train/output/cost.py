"""What a run cost, and what it would have cost on full data: operations counted, and time measured
on real full steps after the run.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pfb.lab.train import task
from pfb.lab.train.batches.loaders import length
from pfb.lab.train.data import Batch
from pfb.lab.train.methods import Method, paused
from pfb.lab.train.nets import optim
from pfb.model.cost import shallow_share
from pfb.utils.timing import Spread, count_saved_bytes, interleaved_seconds

if TYPE_CHECKING:
    from pfb.lab.train.setup import Setup

PAIRS = 15


def compute_of(summary: dict[str, Any], method: Method, model: nn.Module, two_samples: Tensor) -> float:
    """What a run took of full training's FLOPs, by its method, the cut and the counts that stand in
    its summary so far. A sketch of the input and the choice itself count for nothing.
    """
    shallow = 0.0
    if summary["cut"] is not None:
        with torch.compiler.set_stance("force_eager"):  # operations inside of compiled code cannot be counted
            shallow = shallow_share(model, summary["cut"], two_samples)
    return method.full_steps(summary, shallow) / float(summary["full_samples"])


def measure_full_cost(run: Setup) -> dict[str, Any]:
    """Time pruned and full steps in turn, on a copy of the trained model and batches of its
    training data.

    The run's full cost is its own time plus, for every step that was pruned, the median difference
    between a full and a pruned step (in a ramp, the part of it that was left out), and a full one
    for every step that was not taken. Loading is not counted there; where it is counted, and in
    evaluation and checkpoints, it stays as it was.
    """
    config, totals, accelerator = run.config, run.totals, run.accelerator
    prunes = run.pruner is not None or run.blocker is not None
    if totals["pruned_steps"] == 0 and (prunes or config.method == "full"):
        return {"full_train_seconds": totals["train_seconds"], "time_saved": 0.0}
    if not prunes:  # it skips whole steps or adds forwards: only a run on full data tells what it saved
        return {"full_train_seconds": None, "time_saved": None}
    timed = _Copy(run)
    for _ in range(3):  # steady state: density seeded, buffers allocated
        timed.step()
    steps = {"pruned": timed.step, "full": timed.full_step}
    seconds = interleaved_seconds(steps, accelerator.device, repeats=PAIRS)
    saved = {name: timed.saved_bytes(name == "pruned") for name in steps}
    full, pruned = Spread.of(seconds["full"]), Spread.of(seconds["pruned"])
    skipped = config.epochs * run.length.per_epoch - totals["steps"]
    left_out = 0 if config.fill else totals["samples"] - totals["trained_samples"]
    whole = left_out / max(1, timed.left_out * accelerator.num_processes)
    full_seconds = totals["train_seconds"] + whole * (full.median - pruned.median) + skipped * full.median
    return {
        "full_train_seconds": full_seconds,
        "time_saved": 1 - totals["train_seconds"] / full_seconds,
        "step_seconds": {"pairs": PAIRS, "full": full.__dict__, "pruned": pruned.__dict__},
        "step_ratio": Spread.of_ratios(seconds["pruned"], seconds["full"]).__dict__,
        "saved_for_backward_bytes": saved,
    }


class _Copy:
    """Steps of a run on a copy of its model; the trained one stays as it is.

    Attributes:
        left_out: samples that the latest pruned step did not train on.
    """

    def __init__(self, run: Setup) -> None:
        self.run, samples = run, length(run.source.train)
        config = dataclasses.replace(run.config, cut=run.cut)
        self.model = copy.deepcopy(run.plain_model).train()  # the copy's hooks are inert
        self.pruner = run.method.pruner(config, self.model, config.prune, 1, samples)
        self.blocker = run.method.attach(config, self.model, config.prune, 1)
        if config.compile:
            torch._dynamo.reset()  # what is known of the trained model's hooks is not true of the copy's
            self.model.compile()
        self.optimizer = optim.optimizer(self.model, config)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        n, first = config.batch_size, run.accelerator.process_index * config.batch_size
        order = [i % samples for i in range(first, first + 2 * n)]  # of each process another batch
        loader = DataLoader(run.source.train, batch_size=n, sampler=order, collate_fn=run.source.collate)
        device = run.accelerator.device
        self.batches = itertools.cycle([{name: x.to(device) for name, x in batch.items()} for batch in loader])
        self.left_out = 0

    def step(self) -> None:
        loss, size = self._loss()
        self.left_out = size - loss.size(0)
        self._learn(loss)

    def full_step(self) -> None:
        with paused(self.pruner, self.blocker):
            self._learn(self._loss()[0])

    def saved_bytes(self, pruned: bool) -> int:
        """What a forward keeps for its backward."""
        whole = contextlib.nullcontext() if pruned else paused(self.pruner, self.blocker)
        with whole, count_saved_bytes() as saved:
            self._loss()
        return saved.total

    def _loss(self) -> tuple[Tensor, int]:
        """Losses of the samples that train, and how many there were."""
        run, batch = self.run, next(self.batches)
        size = len(batch["index"])
        if self.pruner is not None:
            batch = self._pruned(self.pruner, batch)
        image, label = run.source.prepare_train(batch["input"]), batch["label"]
        if run.config.channels_last:
            image = image.to(memory_format=torch.channels_last)
        with run.accelerator.autocast():
            output = self.model(image)
            label = label if self.blocker is None else self.blocker.select(label)
            return task.losses(task.logits_of(output, label), label, run.config.label_smoothing), size

    def _pruned(self, pruner: Any, batch: Batch) -> Batch:
        kept: Batch = pruner(batch, by=self.run.method.by(self.run.source, batch))
        return kept

    def _learn(self, losses: Tensor) -> None:
        losses.mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.blocker is not None:
            self.blocker.step()
