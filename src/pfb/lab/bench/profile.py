"""Where does the time of a step go? Its parts one after the other, full and pruned in both
wirings.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import pfb
from pfb.lab.bench import output
from pfb.lab.bench.speed import VARIANTS
from pfb.lab.bench.step import Step
from pfb.measure import Clock, Spread, clock_of, synchronize

PARTS = ("shallow pass for the score", "density and choice", "forward", "backward", "optimizer", "centers")
"""``forward`` holds the shallow part of ``reuse`` and what selecting the samples costs in either
wiring.
"""

STEPS = ("full", "reuse", "recompute", "recompute-half", "uniform-recompute")
"""The last two are what was made of ``recompute`` after its first pass had been seen to cost most.
"""


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
    precision: Literal["no", "bf16"] = "no"
    channels_last: bool = False
    device: str | None = None
    """By default the accelerator if there is one, else the CPU."""
    threads: int | None = None
    clock: Literal["wall", "cpu"] = "wall"
    """Elapsed seconds, or CPU seconds of this process."""
    out: Path = Path("runs/profile.json")
    """All numbers (.json) and, beside it, the table (.md)."""


def run(config: ProfileConfig) -> Path:
    """Measure, write the numbers and the table; returns the table's path."""
    from rich.progress import track

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = output.device_of(config.device)
    steps = {name: _TimedStep(config, device, name) for name in STEPS}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for number in track(range(config.warmup + config.repeats), "rounds"):
        for name, step in steps.items():
            parts = step()
            if number >= config.warmup:
                rounds[name].append(parts)
    numbers = {
        **output.origin(asdict(config), device),
        "parts": {
            name: {part: asdict(Spread.of([r[part] for r in taken])) for part in PARTS}
            for name, taken in rounds.items()
        },
    }
    return output.write(config.out, numbers, render(numbers))


def render(numbers: dict[str, Any]) -> str:
    """Markdown table of medians in milliseconds and in percent of the full step."""
    full = sum(part["median"] for part in numbers["parts"]["full"].values())
    lines = [f"| part | {' | '.join(numbers['parts'])} |", "|---" * (1 + len(numbers["parts"])) + "|"]
    for part in PARTS:
        cells = [steps[part]["median"] for steps in numbers["parts"].values()]
        lines.append(f"| {part} | {' | '.join(_cell(cell, full) for cell in cells)} |")
    sums = [sum(part["median"] for part in steps.values()) for steps in numbers["parts"].values()]
    lines.append(f"| all | {' | '.join(_cell(cell, full) for cell in sums)} |")
    return "\n".join(lines) + "\n"


def _cell(seconds: float, full: float) -> str:
    return f"{1000 * seconds:.1f} ms ({seconds / full:.1%})" if seconds else ""


class _TimedStep:
    """A training step that stops the clock between its parts; calling it returns seconds by
    part.
    """

    def __init__(self, config: ProfileConfig, device: torch.device, name: str) -> None:
        self.device, self.clock, self.has_first_pass = device, clock_of(config.clock), "recompute" in name
        self.watch = _Watched(device, self.clock) if name in VARIANTS else None
        arguments = {"prune": config.prune, "estimator": self.watch, **VARIANTS[name]} if name in VARIANTS else None
        self.step = Step(config, device, config.model, arguments)
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


class _Watched(pfb.DensityEstimator):
    """Stops the clock around the decision at the cut: the density is asked first, and told last."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        super().__init__()
        self.device, self.clock = device, clock
        self.began = self.taken = 0.0

    def log_density(self, x: Tensor) -> Tensor:
        self.began = self._now()
        return super().log_density(x)

    def accumulate(self, x: Tensor) -> None:
        super().accumulate(x)
        self.taken = self._now() - self.began

    def _now(self) -> float:
        synchronize(self.device)
        return self.clock()
