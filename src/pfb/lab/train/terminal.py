"""What a run says while it goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

from pfb.lab.train.batches.loaders import length
from pfb.lab.train.data import Source
from pfb.lab.train.options.config import TrainConfig

console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
"""The terminal of a command. A line stays one wherever it goes, and a name what it is."""
WIDE = 1000
"""Letters in a line of a table that no terminal draws."""
SECONDS_PER_LINE = 30
"""Between two lines that tell how far something is, where no bar can be drawn."""


def show(table: Table) -> None:
    """Print a table; where no terminal draws it, as plain lines, each as long as it is."""
    if console.is_terminal:
        console.print(table, soft_wrap=False)
        return
    table.box, table.title_justify = None, "left"
    Console(file=console.file, width=WIDE, markup=False, emoji=False, highlight=False).print(table)


def headline(config: TrainConfig, source: Source, model: nn.Module, device: torch.device, loaded: int) -> str:
    """What is about to be trained, with so many samples in the whole batches of an epoch."""
    parameters, samples = sum(p.numel() for p in model.parameters()), length(source.train)
    lines = (
        f"{config.data}: {samples} training and {length(source.test)} test samples, "
        f"{len(source.classes)} classes; {config.model} with {parameters:,} parameters on {device}"
    )
    if rest := samples - loaded:
        lines += f"\nthe last batch of an epoch is dropped: {rest} samples, different ones each time"
    return lines


def epoch_line(metrics: dict[str, Any], epochs: int) -> str:
    """How an epoch went."""
    waiting = f" ({metrics['waiting_share']:.0%} waiting for data)" if metrics["waiting_share"] >= 0.01 else ""
    tested = f"  test accuracy {metrics['test_accuracy']:.2%}" if "test_accuracy" in metrics else ""
    return (
        f"epoch {metrics['epoch']:3d}/{epochs}  loss {metrics['train_loss']:.3f}{tested}  "
        f"pruned {metrics['pruned_share']:.1%}  {metrics['train_seconds']:.1f} s{waiting}"
    )


class Bars:
    """Bars of what is under way on a terminal; elsewhere a line now and then.

    Args:
        console: where they are drawn.
        shown: nothing is drawn otherwise.

    Example:
        >>> bars = Bars(Console(), shown=False)
        >>> with bars.shown(), bars.task("train", 10) as done:
        ...     done(5)
    """

    def __init__(self, console: Console, shown: bool = True) -> None:
        self.console, self._lines = console, shown and not console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not shown or self._lines, transient=True)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Draw them until the block ends."""
        with self._progress:
            yield

    @contextlib.contextmanager
    def task(self, name: str, total: int | None, completed: int = 0) -> Iterator[Callable[[int], None]]:
        """A bar of its own until the block ends; yields what is told how much is done."""
        task, begun = self._progress.add_task(name, total=total, completed=completed), time.monotonic()
        said = begun

        def done(count: int) -> None:
            nonlocal said
            self._progress.update(task, completed=count)
            now = time.monotonic()
            if self._lines and total and completed < count < total and now - said >= SECONDS_PER_LINE:
                said, left = now, (now - begun) * (total - count) / (count - completed)
                self.console.print(f"{name}: {count:,} of {total:,}, about {left:.0f} s left", highlight=False)

        yield done
        self._progress.remove_task(task)
