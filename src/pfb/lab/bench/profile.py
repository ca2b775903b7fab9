"""Where does the time of a step go? Its parts one after the other, full and pruned in both
wirings.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pfb
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On, Step
from pfb.lab.bench.speed import gathering, takes_half
from pfb.lab.bench.variants import VARIANTS
from pfb.utils.timing import Clock, Spread, clock_of, in_another_order, synchronize

PARTS = ("shallow pass for the score", "density and choice", "forward", "backward", "optimizer", "centers")
"""``forward`` holds the shallow part of ``reuse`` and what selecting the samples costs in either
wiring.
"""

TITLES = {"shallow pass for the score": "sketch, or shallow pass, for the score", "centers": "memory, or centers"}
"""Of those parts whose names do not fit all steps."""

STEPS = ("full", "sketch", "uniform-recompute", "recompute", "recompute-half", "reuse")


@dataclass(frozen=True)
class ProfileConfig:
    """Time each part of a training step, full and pruned."""

    model: str = "resnet18"
    batch_size: int = 128
    image_size: int = 32
    classes: int = 10
    prune: float = 0.4
    repeats: int = 10
    warmup: int = 2
    """Rounds not counted; more of them where it takes longer until there are centers."""
    on: On = field(default_factory=Device)
    out: Path = Path("runs/profile.json")
    """All numbers (.json) and, beside it, the table (.md)."""

    def __post_init__(self) -> None:
        checks.shares(prune=self.prune)
        checks.at_least(1, batch_size=self.batch_size, image_size=self.image_size, classes=self.classes)
        checks.at_least(1, repeats=self.repeats)
        checks.at_least(0, warmup=self.warmup)


def run(config: ProfileConfig) -> Path:
    """Measure, write the numbers and the table; returns the table's path."""
    from rich.progress import track

    device = config.on.start()
    half = takes_half(Step(config, config.model, {"prune": config.prune}))
    steps = {name: _TimedStep(config, name) for name in STEPS if half or name != "recompute-half"}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    warmup = max(config.warmup, gathering(config.batch_size, config.prune))
    for number in track(range(warmup + config.repeats), "rounds"):
        for name in in_another_order(steps, number):
            parts = steps[name]()
            if number >= warmup:
                rounds[name].append(parts)
    numbers = {
        **output.origin(asdict(config), device),
        "parts": {
            name: {part: asdict(Spread.of([r[part] for r in taken])) for part in PARTS}
            for name, taken in rounds.items()
        },
    }
    return output.write(config.out, numbers, render)


def render(numbers: dict[str, Any]) -> str:
    """Markdown table of medians in milliseconds and in percent of the full step."""
    steps = numbers["parts"].values()
    full = _whole(numbers["parts"]["full"])
    rows = [[TITLES.get(part, part), *(_cell(parts[part]["median"], full) for parts in steps)] for part in PARTS]
    return output.table(["part", *numbers["parts"]], [*rows, ["all", *(_cell(_whole(parts), full) for parts in steps)]])


def _whole(parts: dict[str, dict[str, float]]) -> float:
    """Seconds of a step, from its parts."""
    return sum(part["median"] for part in parts.values())


def _cell(seconds: float, full: float) -> str:
    return f"{1000 * seconds:.1f} ms ({seconds / full:.1%})" if seconds else ""


class _TimedStep:
    """A training step that stops the clock between its parts; calling it returns seconds by
    part.
    """

    def __init__(self, config: ProfileConfig, name: str) -> None:
        variant, device = VARIANTS.get(name), config.on.place
        self.device, self.clock = device, clock_of(config.on.clock)
        remembers = variant is not None and isinstance(variant.importance, pfb.InverseDensity)
        watched = _WatchedMemory if remembers else _WatchedCenters
        self.watch = None if variant is None else watched(device, self.clock)
        arguments = None if variant is None else variant.attach(None, config.prune) | {"estimator": self.watch}
        self.step = Step(config, config.model, arguments)
        self.has_first_pass = variant is not None and variant.scores and variant.shallow.name == "recompute"
        self.batch = self.step.batch(config.batch_size)

    def __call__(self) -> dict[str, float]:
        begin = self._now()
        loss = self.step.loss(*self.batch)
        forward = self._now()
        loss.backward()  # type: ignore[no-untyped-call]
        backward = self._now()
        self.step.optimizer.step()
        self.step.optimizer.zero_grad()
        updated = self._now()
        if self.step.blocker is not None:
            self.step.blocker.step()
        end = self._now()
        decided = 0.0 if self.watch is None else self.watch.taken
        scored = self.watch.began - begin if self.watch is not None and self.has_first_pass else 0.0
        times = (
            scored,
            decided,
            forward - begin - scored - decided,
            backward - forward,
            updated - backward,
            end - updated,
        )
        return dict(zip(PARTS, times, strict=True))

    def _now(self) -> float:
        synchronize(self.device)
        return self.clock()


class _Watched:
    """Stops the clock around the decision at the cut: the density is asked first, and told last."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        super().__init__()
        self.device, self.clock = device, clock
        self.began = self.taken = 0.0

    def _begin(self) -> None:
        synchronize(self.device)
        self.began = self.clock()

    def accumulate(self, x: Tensor) -> None:
        super().accumulate(x)  # type: ignore[misc]
        synchronize(self.device)
        self.taken = self.clock() - self.began


class _WatchedCenters(_Watched, pfb.DensityEstimator):
    def log_density(self, x: Tensor) -> Tensor:
        self._begin()
        return super().log_density(x)


class _WatchedMemory(_Watched, pfb.NeighbourMemory):
    def isolation(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        self._begin()
        return super().isolation(x, own)
