"""Where to cut, and how: measured on the user's own model, batch and device, before any
training.
"""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfb.features import cuts
from pfb.blocking.gate import Gate
from pfb.blocking.inputs import batched_places, main_input
from pfb.density.kernels import Density
from pfb.density.moving_centers import DensityEstimator
from pfb.density.neighbours import NeighbourMemory
from pfb.features.cut import FeatureReader, Features, batched_tensor, channel_layers
from pfb.features.scoring_pass import output_of
from pfb.features.sketch import Sketch
from pfb.selection import nested as tree
from pfb.selection.rules import Importance, InverseDensity, RareFirst
from pfb.selection.schedule import constant
from pfb.selection.selection import keep_count, parts
from pfb.utils.timing import Clock, Spread, count_saved_bytes, interleaved_seconds

MAX_CUTS = 6


@dataclass(frozen=True)
class Prediction:
    """One wiring at one cut.

    Attributes:
        step_ratio: time of a pruned training step, full step = 1.
        saved_bytes: what autograd keeps for the backward pass.
    """

    step_ratio: float
    saved_bytes: int


@dataclass(frozen=True)
class Candidate:
    """A layer one may cut after.

    Attributes:
        cut: its name.
        shallow_share: s, the time of a training step that is spent up to it.
        reuse, recompute: what the two wirings would cost.
    """

    cut: str
    shallow_share: float
    reuse: Prediction
    recompute: Prediction

    @property
    def shallow(self) -> str:
        """The faster wiring."""
        return "reuse" if self.reuse.step_ratio <= self.recompute.step_ratio else "recompute"

    @property
    def step_ratio(self) -> float:
        """What a step takes in the faster wiring, full step = 1."""
        return min(self.reuse.step_ratio, self.recompute.step_ratio)


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` measured; print it.

    Attributes:
        prune, batch_size, kept: the share, N and K.
        device: where it was measured.
        full_seconds, full_bytes: one full training step, and what autograd keeps for it.
        sketch: a step under ``pfb.attach``'s defaults, where a sketch of the input tells and no
            shallow pass is needed, so that the cut does not matter; ``None`` for an input that no
            sketch is known of.
        candidates: steps judged by the cut's output, in the order of the model.
        cut, shallow: what is recommended: the first stage, as in the paper; ``"recompute"`` with a
            sketch, or, where none is known or it saves nothing, the faster wiring.
    """

    prune: float
    batch_size: int
    kept: int
    device: str
    full_seconds: float
    full_bytes: int
    sketch: Prediction | None
    candidates: tuple[Candidate, ...]
    cut: str

    @property
    def recommended(self) -> Candidate:
        return next(c for c in self.candidates if c.cut == self.cut)

    @property
    def by_sketch(self) -> bool:
        """Whether samples are to be judged by a sketch of the input, not by the cut's output."""
        ratio = math.inf if self.sketch is None else self.sketch.step_ratio
        return ratio < 1 or ratio <= self.recommended.step_ratio

    @property
    def shallow(self) -> str:
        return "recompute" if self.by_sketch else self.recommended.shallow

    @property
    def saved(self) -> float:
        """Time of a step that what is recommended saves, full step = 1."""
        best = self.sketch if self.by_sketch and self.sketch is not None else self.recommended
        return 1 - best.step_ratio

    def __str__(self) -> str:
        width = max(len(c.cut) for c in self.candidates) + 2
        lines = [
            f"{self.batch_size} samples on {self.device}, {self.prune:.0%} stopped: {self.kept} go on. A full step "
            f"takes {1000 * self.full_seconds:.1f} ms and keeps {self.full_bytes / 2**20:.0f} MiB for backward.",
            f"  {'cut':{width}}{'shallow share':>14}{'reuse: time':>14}{'MiB':>7}{'recompute: time':>18}{'MiB':>7}",
        ]
        lines += [
            f"{'* ' if c.cut == self.cut else '  '}{c.cut:{width}}{c.shallow_share:>14.1%}"
            f"{c.reuse.step_ratio:>14.2f}{c.reuse.saved_bytes / 2**20:>7.0f}"
            f"{c.recompute.step_ratio:>18.2f}{c.recompute.saved_bytes / 2**20:>7.0f}"
            for c in self.candidates
        ]
        if self.sketch is not None:
            lines.append(
                f"  judged by a sketch of the input, at any cut: time {self.sketch.step_ratio:.2f}, "
                f"{self.sketch.saved_bytes / 2**20:.0f} MiB"
            )
        wiring = "" if self.by_sketch else f', shallow="{self.shallow}", features="cut"'
        lines.append(
            f'Recommended: pfb.attach(model, cut="{self.cut}", prune={self.prune:g}{wiring}), '
            f"about {self.saved:.0%} less time per step."
            if self.saved > 0
            else "Nothing would be saved at this share and cut on this device: try larger batches, or a larger share."
        )
        return "\n".join(lines)


def plan(
    model: nn.Module,
    example_input: Any,
    prune: float = 0.4,
    *,
    cut: str | None = None,
    repeats: int = 7,
    clock: Clock = time.perf_counter,
    on_round: Callable[[], None] = lambda: None,
) -> Plan:
    """Measure what stopping samples would save at each candidate cut, in both wirings.

    Nothing is pruned. What is timed, in turn, on a copy of the model: whole training steps
    (forward, backward, SGD) on all N and on K samples, and for each cut the shallow part alone,
    with graph and without. From these parts::

        sketch    = step(K) + sketch(N) + choice
        reuse     = step(K) + shallow_training(N) - shallow_training(K) + choice
        recompute = step(K) + shallow_forward_without_graph(N) + choice

    Args:
        model: any module; it is not changed. Call this inside ``torch.autocast`` to plan for mixed
            precision.
        example_input: a batch as the model takes it: a tensor, a tuple of positional or a dict of
            keyword arguments.
        prune: share to stop, in [0, 1).
        cut: the cut to recommend a wiring for; ``None``: the first stage, or the first candidate
            where none is found.
        repeats: counted rounds; more for a busy machine.
        clock: what tells the time in seconds; ``time.process_time`` is steadier on a busy CPU.
        on_round: called after every round, for progress.

    Raises:
        ValueError: no layer to cut at, or a batch without tensors.

    Example:
        >>> import torch, pfb
        >>> def block():
        ...     return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> model = torch.nn.Sequential(*(block() for _ in range(6)))
        >>> found = pfb.plan(model, torch.randn(256, 64), prune=0.5, cut="0")
        >>> found.kept, len(found.candidates)
        (128, 6)
    """
    model = copy.deepcopy(model).train()
    args, kwargs = _arguments(example_input)
    batched = next((x for x in tree.leaves((args, kwargs)) if x.dim() > 0), None)
    if batched is None:
        raise ValueError("`example_input` must hold a batch of tensors, as the model takes it")
    n, device = batched.size(0), batched.device
    kept = keep_count(n, constant(prune).prune)
    first = torch.arange(kept, device=device)
    few_args, few_kwargs = tree.select((args, kwargs), first, n)
    cut = cuts.resolve(model, cut)[0] if cut is not None else _first_stage_or_none(model)
    names = _reached(model, cut, args, kwargs)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)

    def step(some_args: tuple[Any, ...], some_kwargs: dict[str, Any]) -> None:
        _loss(model(*some_args, **some_kwargs)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    timed: dict[str, Callable[[], object]] = {
        "full": lambda: step(args, kwargs),
        "kept": lambda: step(few_args, few_kwargs),
    }
    sketched = judging(model, args, kwargs, prune)
    if sketched is not None:
        timed["sketch"] = sketched
    for name in names:
        part = _Shallow(model, name, prune)
        part.score(args, kwargs)  # whichever comes first, it has something to decide
        timed[f"score {name}"] = lambda part=part: part.score(args, kwargs)  # type: ignore[misc]
        timed[f"decide {name}"] = part.decide_again
        timed[f"all {name}"] = lambda part=part: part.train(args, kwargs)  # type: ignore[misc]
        timed[f"few {name}"] = lambda part=part: part.train(few_args, few_kwargs)  # type: ignore[misc]
    seconds = interleaved_seconds(timed, device, repeats, clock=clock, on_round=on_round)
    in_all, in_few = _saved_bytes(model, names, args, kwargs), _saved_bytes(model, names, few_args, few_kwargs)

    def ratio(combine: Callable[[dict[str, float]], float]) -> float:
        """Median over rounds of a combination of what was timed in the same round."""
        rounds = [{name: values[i] for name, values in seconds.items()} for i in range(repeats)]
        return statistics.median(combine(r) / r["full"] for r in rounds)

    candidates = tuple(
        Candidate(
            name,
            ratio(lambda r, c=name: r[f"all {c}"]),  # type: ignore[misc]
            Prediction(
                ratio(lambda r, c=name: r["kept"] + r[f"all {c}"] - r[f"few {c}"] + r[f"decide {c}"]),  # type: ignore[misc]
                in_few[""] + in_all[name] - in_few[name],
            ),
            Prediction(ratio(lambda r, c=name: r["kept"] + r[f"score {c}"]), in_few[""]),  # type: ignore[misc]
        )
        for name in names
    )
    full = Spread.of(seconds["full"]).median
    sketch = None if sketched is None else Prediction(ratio(lambda r: r["kept"] + r["sketch"]), in_few[""])
    return Plan(prune, n, kept, str(device), full, in_all[""], sketch, candidates, names[0] if cut is None else cut)


class _Shallow:
    """The part of a model up to one cut, and the decision there."""

    def __init__(self, model: nn.Module, cut: str, prune: float) -> None:
        self.model, self.module = model, model.get_submodule(cut)
        self.estimator = DensityEstimator()
        self.gate = gate_for(model, cut, RareFirst(), self.estimator, parts(prune))
        self.output: Any = None

    def score(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model.eval()
        self.output = output_of(self.model, self.module, args, kwargs)
        self.model.train()
        self.decide_again()

    def decide_again(self) -> None:
        self.gate.decide(self.output)
        self.estimator.apply()
        self.gate.end_step()

    def train(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _loss(output_of(self.model, self.module, args, kwargs, grad=True)).backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad()


def judging(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    prune: float,
    features: Features | None = None,
    memory: int = 4096,
) -> Callable[[], None] | None:
    """What decides of a batch by features of the input, by default its sketch, without a forward;
    ``None`` if no sketch is known of it.
    """
    gate = Gate(InverseDensity(), NeighbourMemory(memory), features or Sketch())
    gate.set_share(parts(prune))
    given = main_input(model, batched_places(model, args, kwargs, ()))

    def decide() -> None:
        seen_ND = gate.sight(given)
        gate.decide(seen_ND, seen_ND)
        gate.estimator.apply()
        gate.end_step()

    try:
        decide()
    except TypeError:
        return None
    return decide


def _arguments(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_input, dict):
        return (), example_input
    return (example_input if isinstance(example_input, tuple) else (example_input,)), {}


def _first_stage_or_none(model: nn.Module) -> str | None:
    with contextlib.suppress(ValueError):
        return cuts.find_first_stage(model)
    return None


def _reached(model: nn.Module, cut: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Candidates that run, and run themselves; the asked-for cut among them, in the model's
    order.
    """
    order = [name for name, _ in model.named_modules()]
    names = cuts.candidates(model)
    if cut is not None and cut not in names:
        names = sorted([*names, cut], key=order.index)
    place = names.index(cut) if cut is not None else 0
    names = names[max(0, min(place - 1, len(names) - MAX_CUTS)) :][:MAX_CUTS]
    reached = []
    for name in names:
        with contextlib.suppress(RuntimeError, TypeError):
            batched_tensor(output_of(model.eval(), model.get_submodule(name), args, kwargs))
            reached.append(name)
    model.train()
    if not reached:
        raise ValueError(f"no layer of {type(model).__name__} can be cut at; pass `cut=`, the name of one")
    return reached


def _loss(output: Any) -> Tensor:
    """Some scalar through which gradients reach everything."""
    parts = [x.float().square().mean() for x in tree.leaves(output) if x.requires_grad]
    return torch.stack(parts).sum()


def _saved_bytes(model: nn.Module, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    """For the whole forward (under the empty name), and up to each cut."""
    found = {}
    for name in ["", *names]:
        with count_saved_bytes() as saved:
            if name:
                output_of(model, model.get_submodule(name), args, kwargs, grad=True)
            else:
                model(*args, **kwargs)
        found[name] = saved.total
    return found


def gate_for(model: nn.Module, cut: str, importance: Importance, estimator: Density, pruned_parts: int = 0) -> Gate:
    """A gate without hooks, that reads a cut's output.

    Example:
        >>> import torch, pfb
        >>> from pfb.selection.selection import parts
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
        >>> gate = gate_for(model, "0", pfb.Uniform(), pfb.DensityEstimator(), parts(0.4))
        >>> gate.decide(torch.randn(10, 8)).shape
        torch.Size([6])
    """
    gate = Gate(importance, estimator, FeatureReader(channel_layers(model.get_submodule(cut), model)))
    gate.set_share(pruned_parts)
    return gate
