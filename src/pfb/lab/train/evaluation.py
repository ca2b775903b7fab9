"""What a model gets right, and the moving average that is judged beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pfb.lab.train import task
from pfb.lab.train.data import Source


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Any,
    source: Source,
    label_smoothing: float,
    accelerator: Accelerator,
    on_batch: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
    """``loss`` and ``accuracy`` over a loader; ``top5_accuracy`` among more than 5 classes of
    images, ``mean_iou`` of a segmentation and ``perplexity`` of a language model.

    All processes call it; every sample counts once. ``on_batch`` is told how many batches are done.
    """
    model.eval()
    classes, device = len(source.classes), accelerator.device
    among_five = source.task == "classification" and classes > 5
    sums = torch.zeros(4, device=device, dtype=torch.float64)  # right, among the first five, loss, samples
    taken_for = torch.zeros(classes, classes, device=device, dtype=torch.float64)
    for done, batch in enumerate(loader, start=1):
        label = batch["label"]
        logits = task.logits_of(model(source.prepare_test(batch["input"])), label)
        each = {"right": task.accuracies(logits, label), "loss": task.losses(logits, label, label_smoothing)}
        each["five"] = task.among_first(logits, label, 5) if among_five else each["right"]
        if source.task == "segmentation":
            each["confusion"] = task.confusion(logits, label, classes)
        # Of all processes, without the samples that only fill their last batch.
        each = accelerator.gather_for_metrics(each)
        each["count"] = torch.ones_like(each["loss"])
        sums += torch.stack([each[name].sum() for name in ("right", "five", "loss", "count")]).double()
        if source.task == "segmentation":
            taken_for += each["confusion"].sum(0)
        on_batch(done)
    right, five, loss, count = sums.tolist()
    found = {"loss": loss / count, "accuracy": right / count}
    if among_five:
        found["top5_accuracy"] = five / count
    if source.task == "segmentation":
        found["mean_iou"] = task.mean_iou(taken_for)
    if source.task == "language" and label_smoothing == 0:
        found["perplexity"] = math.exp(loss / count)
    return found


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A moving average of weights and BatchNorm statistics; the copy is never pruned."""
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
