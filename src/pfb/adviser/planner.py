"""What a pruned step takes, with either tool and at each cut: measured, before any training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pfb.adviser.scan import random_states_kept
from pfb.adviser.step_time import as_timed, copied, rounds, step_of
from pfb.blocking.attach import attach
from pfb.model import cuts
from pfb.model.inputs import arguments, run
from pfb.pruning.batch_pruner import BatchPruner
from pfb.selection import nested as tree
from pfb.selection.schedule import constant
from pfb.selection.select import select
from pfb.selection.selection import keep_count
from pfb.utils.errors import first_line
from pfb.utils.timing import Clock, Spread, count_saved_bytes

MAX_CUTS = 6


@dataclass(frozen=True)
class Step:
    """A way to prune a step.

    Attributes:
        name: ``"ideal"`` (as many samples, chosen at no cost), ``"copies"`` (``BatchPruner``
            before the model) or ``"paper"`` (``attach`` at a cut).
        cut: where the paper's tool cuts.
        ratio: its time, full step = 1, over pairs of steps.
        saved_bytes: what autograd keeps for the backward pass.
    """

    name: str
    cut: str | None
    ratio: Spread
    saved_bytes: int


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` measured; print it.

    Attributes:
        prune, batch_size, kept: the share, N and K.
        device: where it was measured.
        full_seconds, full_bytes: one full training step, and what autograd keeps for it.
        steps: the ways to prune it.
        refused: cuts at which the paper's tool cannot be used, and why.
    """

    prune: float
    batch_size: int
    kept: int
    device: str
    full_seconds: float
    full_bytes: int
    steps: tuple[Step, ...]
    refused: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.batch_size} samples on {self.device}, {self.prune:.0%} left out: {self.kept} go on. A full step "
            f"takes {1000 * self.full_seconds:.1f} ms and keeps {self.full_bytes / 2**20:.0f} MiB for backward.",
        ]
        names = [s.name if s.cut is None else f"{s.name}, cut {s.cut}" for s in self.steps]
        width = max(map(len, names)) + 2
        lines.append(f"  {'step':{width}}{'time':>6}{'quartiles':>14}{'MiB':>7}")
        for name, s in zip(names, self.steps, strict=True):
            between = f"{s.ratio.low:.2f} to {s.ratio.high:.2f}"
            lines.append(f"  {name:{width}}{s.ratio.median:>6.2f}{between:>14}{s.saved_bytes / 2**20:>7.0f}")
        lines += [f"  no cut at {cut}: {why}" for cut, why in self.refused]
        lines.append(f"copies: loader = pfb.prune_batches(loader, prune={self.prune:g})")
        if (paper := next((s.cut for s in self.steps if s.cut is not None), None)) is not None:
            lines.append(f'paper:  blocker = pfb.attach(model, cut="{paper}", prune={self.prune:g})')
        return "\n".join(lines)


def plan(
    model: nn.Module,
    example_input: Any,
    prune: float = 0.4,
    *,
    cut: str | None = None,
    repeats: int = 7,
    clock: Clock | None = None,
    on_round: Callable[[], None] = lambda: None,
) -> Plan:
    """Measure what real pruned training steps take beside full ones: those of a batch from which
    :class:`pfb.BatchPruner` left samples out, and those of :func:`pfb.attach` at each candidate
    cut.

    All run on copies of the model, each in turn with a full step (forward, backward, SGD). Model
    and random numbers stay as they are. Call it inside ``torch.autocast`` to plan for mixed
    precision.

    Args:
        model: any module.
        example_input: a batch as the model takes it: a tensor, a tuple of positional or a dict of
            keyword arguments.
        prune: share to leave out, in [0, 1).
        cut: the only cut to measure; by default the candidates, six at most.
        repeats: counted pairs at most, fewer where they take more than ten seconds.
        clock: what tells the time in seconds; by default the processor's on a CPU, with one thread,
            so that other programs do not count, and elapsed time elsewhere.
        on_round: called after each way was measured, for progress.

    Raises:
        ValueError: no such cut, or a batch without tensors.

    Example:
        >>> import torch, pfb
        >>> def block():
        ...     return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> model = torch.nn.Sequential(*(block() for _ in range(6)))
        >>> found = pfb.plan(model, torch.randn(256, 64), prune=0.5, cut="0", repeats=3)
        >>> found.kept, [step.name for step in found.steps]
        (128, ['ideal', 'copies', 'paper'])
    """
    batched = next((x for x in tree.leaves(arguments(example_input)) if x.dim() > 0), None)
    if batched is None:
        raise ValueError("`example_input` must hold a batch of tensors, as the model takes it")
    n, device = batched.size(0), batched.device
    kept = keep_count(n, constant(prune).prune)
    names = cuts.candidates(model)[:MAX_CUTS] if cut is None else [cuts.resolve(model, cut)[0]]
    few = select(example_input, torch.arange(kept, device=device), n)
    found: list[Step] = []
    refused: list[tuple[str, str]] = []
    whole: list[float] = []
    with random_states_kept(None, device), torch.enable_grad(), as_timed(device) as own_clock:
        full, other = copied(model), copied(model)
        full_step, other_step = step_of(full), step_of(other)
        pruner = BatchPruner(prune)

        def measure(name: str, at: str | None, step: Callable[[], object], saved: int) -> None:
            steps = {"full": lambda: full_step(example_input), name: step}
            seconds = rounds(steps, device, clock or own_clock, lambda done, of: None, repeats)
            found.append(Step(name, at, Spread.of_ratios(seconds[name], seconds["full"]), saved))
            whole.extend(seconds["full"])
            on_round()

        measure("ideal", None, lambda: other_step(few), _saved_bytes(other, few))
        try:
            pruner(example_input)
        except TypeError:
            pass  # an input that no sketch is known of
        else:
            measure("copies", None, lambda: other_step(pruner(example_input)), found[0].saved_bytes)
        for name in names:
            try:
                wired = copied(model)
                with attach(wired, name, prune) as blocker:
                    saved = _saved_bytes(wired, example_input)
                    blocker.step()
                    step = step_of(wired, blocker.step)
                    measure("paper", name, lambda step=step: step(example_input), saved)  # type: ignore[misc]
            except (RuntimeError, TypeError, ValueError) as error:
                refused.append((name, first_line(error)))
        return Plan(
            prune,
            n,
            kept,
            str(device),
            Spread.of(whole).median,
            _saved_bytes(full, example_input),
            tuple(found),
            tuple(refused),
        )


def _saved_bytes(model: nn.Module, x: Any) -> int:
    with count_saved_bytes() as saved:
        run(model, x)
    return saved.total
