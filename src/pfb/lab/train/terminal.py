"""What a run says while it goes on."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from pfb.lab.train.config import TrainConfig
from pfb.lab.train.data import Source
from pfb.lab.train.loaders import length


def headline(config: TrainConfig, source: Source, model: nn.Module, device: torch.device, cut: str | None) -> str:
    """What is about to be trained, on one line, and where samples are stopped, on another."""
    parameters = sum(p.numel() for p in model.parameters())
    lines = (
        f"{config.data}: {length(source.train)} training and {length(source.test)} test samples, "
        f"{len(source.classes)} classes; {config.model} with {parameters:,} parameters on {device}"
    )
    if cut is not None:
        lines += f"\n{config.method}: stops {config.prune:.0%} of every batch after {cut!r}, {config.shallow}"
    return lines


def epoch_line(metrics: dict[str, Any], epochs: int) -> str:
    """How an epoch went."""
    tested = f"  test accuracy {metrics['test_accuracy']:.2%}" if "test_accuracy" in metrics else ""
    return (
        f"epoch {metrics['epoch']:3d}/{epochs}  loss {metrics['train_loss']:.3f}{tested}  "
        f"pruned {metrics['pruned_share']:.1%}  {metrics['train_seconds']:.1f} s"
    )


def progress_bar(console: Console, shown: bool) -> Progress:
    """Steps done and to do, with the time they take."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not shown, transient=True)
