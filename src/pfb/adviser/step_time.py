"""Finding: what a pruned step takes beside a whole one, whatever else the machine does."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pfb.adviser.scan import Progress, Scan
from pfb.density.neighbours import NeighbourMemory
from pfb.model.inputs import device_of, moved, run, split, try_out
from pfb.pruning.batch_pruner import BatchPruner
from pfb.selection import nested as tree
from pfb.selection.select import select
from pfb.selection.selection import keep_count
from pfb.utils.timing import Clock, Spread, clock_of, interleaved_seconds

SECONDS = 10.0  # spent on timing, beyond which no further round begins
FEWEST, MOST = 3, 9  # rounds
WORTH_TIME = 0.03  # of a step
WAITING = 0.5  # of the time, for the loader


@dataclass(frozen=True)
class StepTime:
    """Steps of the model, timed in pairs.

    Attributes:
        device: where.
        seconds: a training step on a whole batch: of the processor (one thread) on a CPU, elapsed
            elsewhere.
        kept: one on the samples that are kept, whole step = 1, with its spread over the pairs.
        judged: what it takes to choose them, whole step = 1.
        loading: share of the processor's time that goes into loading batches; ``None`` where that
            cannot be told: worker processes, or another device.
    """

    device: str
    seconds: float
    kept: Spread
    judged: Spread
    loading: float | None

    @property
    def ratio(self) -> float:
        """A pruned step with its choice, whole step = 1."""
        return self.kept.median + self.judged.median

    @property
    def is_shorter(self) -> bool | None:
        """Whether it takes less time; ``None`` where the pairs disagree."""
        low, high = self.kept.low + self.judged.low, self.kept.high + self.judged.high
        return None if low <= 1 - WORTH_TIME < high else high <= 1 - WORTH_TIME

    @property
    def waits(self) -> bool:
        """Whether loading takes half of the time, which pruning batches does not spare."""
        return (self.loading or 0.0) >= WAITING


def find(
    model: nn.Module, seen: Scan, features: Any, prune: float, memory: int, prepared: bool, progress: Progress
) -> StepTime:
    """Time steps of a copy of the model on the first batch of a pass.

    Raises:
        ValueError: the model cannot be copied, or does not run on the batch.
    """
    assert seen.first is not None
    x, judged = seen.first
    if not prepared:
        x = split(x, model)[0]
    work, device, n = copied(model), device_of(model), seen.batch_size
    try_out(work, x)
    x, judged = moved(x, device), moved(judged, device)
    kept = keep_count(n, prune)
    few = select(x, torch.arange(kept, device=device), n)
    pruner = BatchPruner(prune, features=features, density=NeighbourMemory(memory))
    step = step_of(work)
    steps = {"whole": lambda: step(x), "few": lambda: step(few), "judge": lambda: pruner(judged)}
    threads, is_cpu = torch.get_num_threads(), device.type == "cpu"
    torch.set_num_threads(1 if is_cpu else threads)  # other programs then do not count
    try:
        seconds = rounds(steps, device, clock_of("cpu" if is_cpu else "wall"), progress)
    finally:
        torch.set_num_threads(threads)
    whole = Spread.of(seconds["whole"]).median
    loading = None
    if is_cpu and seen.load_seconds is not None:
        loading = seen.load_seconds / (seen.load_seconds + whole)
    return StepTime(
        str(device),
        whole,
        Spread.of_ratios(seconds["few"], seconds["whole"]) if kept < n else Spread(1.0, 1.0, 1.0),
        Spread.of_ratios(seconds["judge"], seconds["whole"]),
        loading,
    )


def say(found: StepTime) -> list[tuple[str, str]]:
    """Rows of the advice."""
    few, choice = found.kept.median, found.judged.median
    text = f"a pruned step takes {few:.2f} of a whole one, and {choice:.2f} to choose its samples"
    if found.is_shorter is None:
        low, high = found.kept.low + found.judged.low, found.kept.high + found.judged.high
        text += f"; whether that is less cannot be told: between {low:.2f} and {high:.2f} in this pass"
    rows = [("steps", text)]
    if found.loading is not None:
        rows.append(("loader", f"{found.loading:.0%} of the processor's time goes into loading"))
    return rows


def copied(model: nn.Module) -> nn.Module:
    """A copy in training mode, without gradients.

    Raises:
        ValueError: it cannot be copied.
    """
    try:
        work = copy.deepcopy(model).train()
    except Exception as error:  # whatever a class of the user's raises
        raise ValueError(f"the model cannot be copied, so that it would not stay as it is ({error})") from error
    work.zero_grad()
    return work


def step_of(model: nn.Module) -> Callable[[Any], None]:
    """A training step (forward, backward, SGD that changes nothing) on what the model takes."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters or [nn.Parameter(torch.zeros(1))], lr=0.0, momentum=0.9)

    def step(x: Any) -> None:
        values = [y.float().square().mean() for y in tree.leaves(run(model, x)) if y.requires_grad]
        if values:  # some scalar through which gradients reach everything
            torch.stack(values).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def rounds(
    steps: dict[str, Callable[[], object]], device: torch.device, clock: Clock, progress: Progress
) -> dict[str, list[float]]:
    """Time steps in turn; in as many rounds as fit into ten seconds, but three."""
    first = interleaved_seconds(steps, device, repeats=1, warmup=1, clock=clock)
    one = sum(values[0] for values in first.values())
    count = min(MOST, max(FEWEST, int(SECONDS / max(one, 1e-9))))
    done = itertools.count(1)
    progress("timing steps", 0, count)
    on_round = lambda: progress("timing steps", next(done), count)  # noqa: E731
    return interleaved_seconds(steps, device, repeats=count, warmup=0, clock=clock, on_round=on_round)
