"""Where does the time of a step go? Its parts one after the other, full and pruned."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On, Step
from pfb.lab.bench.variants import VARIANTS
from pfb.selection.selection import keep_count
from pfb.utils.timing import Spread, clock_of, in_another_order, synchronize

PARTS = ("judging and selecting", "forward", "backward", "optimizer", "step of the blocker")
"""The first is what is done before the model; inside the model it is part of ``forward``."""
STEPS = ("full", "ideal", *VARIANTS)


@dataclass(frozen=True)
class ProfileConfig:
    """Time each part of a training step, full, pruned, and on the kept samples alone."""

    model: str = "resnet18"
    batch_size: int = 128
    image_size: int = 32
    classes: int = 10
    prune: float = 0.4
    repeats: int = 10
    warmup: int = 2
    """Rounds not counted."""
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
    steps = {name: _TimedStep(config, name) for name in STEPS}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for number in track(range(config.warmup + config.repeats), "rounds"):
        for name in in_another_order(steps, number):
            parts = steps[name]()
            if number >= config.warmup:
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
    rows = [[part, *(_cell(parts[part]["median"], full) for parts in steps)] for part in PARTS]
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
        self.device, self.clock = config.on.place, clock_of(config.on.clock)
        self.step = Step(config, config.model, name if name in VARIANTS else None, prune=config.prune)
        n = keep_count(config.batch_size, config.prune) if name == "ideal" else config.batch_size
        self.batch = self.step.batch(n)

    def __call__(self) -> dict[str, float]:
        step, times = self.step, [self._now()]
        batch = self.batch if step.pruner is None else step.pruner(*self.batch)
        times.append(times[0] if step.pruner is None else self._now())
        loss = step.forward(*batch)
        times.append(self._now())
        loss.backward()  # type: ignore[no-untyped-call]
        times.append(self._now())
        step.optimizer.step()
        step.optimizer.zero_grad()
        times.append(self._now())
        if step.blocker is not None:
            step.blocker.step()
        times.append(times[-1] if step.blocker is None else self._now())
        return {part: end - begin for part, begin, end in zip(PARTS, times, times[1:], strict=False)}

    def _now(self) -> float:
        synchronize(self.device)
        return self.clock()
