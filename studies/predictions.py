"""Does ``pfb.plan`` predict what is then measured? Plans for several architectures beside real
pruned steps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import pfb
from pfb.adviser.planner import Prediction
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On, Step, check_models
from pfb.utils.timing import Spread, clock_of, interleaved_seconds


@dataclass(frozen=True)
class PlanConfig:
    """Compare predicted with measured step times."""

    models: tuple[str, ...] = (
        "resnet18",
        "vgg11_bn",
        "mobilenet_v3_small",
        "timm:convnext_atto",
        "timm:vit_tiny_patch16_224",
        "timm:regnety_002",
    )
    image_size: int = 64
    classes: int = 10
    batch_size: int = 32
    prune: float = 0.4
    repeats: int = 9
    on: On = field(default_factory=Device)
    out: Path = Path("runs/plan.json")
    """All numbers (.json) and, beside it, the table (.md)."""

    def __post_init__(self) -> None:
        checks.given(models=self.models)
        checks.shares(prune=self.prune)
        checks.at_least(1, image_size=self.image_size, classes=self.classes, repeats=self.repeats)
        checks.at_least(1, batch_size=self.batch_size)


def run(config: PlanConfig) -> Path:
    """Plan, measure, write the numbers and the table; returns the table's path."""
    from rich.progress import track

    device = config.on.start()
    check_models(config.models, config)
    rows = [_row(name, config, device) for name in track(config.models, "models")]
    numbers = {**output.origin(asdict(config), device), "rows": rows}
    return output.write(config.out, numbers, render)


def render(numbers: dict[str, Any]) -> str:
    """Markdown table; time saved in percent of a full step, and the prediction's error in
    points.
    """
    header = ["model", "cut", "wiring", "saved, predicted", "saved, measured (quartiles)", "error, points"]
    rows = []
    for row in numbers["rows"]:
        for wiring, measured in row["measured"].items():
            predicted = row["predicted"][wiring]
            median, low, high = (1 - measured[place] for place in ("median", "high", "low"))
            saved = [f"{1 - predicted:.1%}", f"{median:.1%} ({low:.1%} to {high:.1%})"]
            error, recommended = f"{100 * (measured['median'] - predicted):+.1f}", wiring == row["recommended"]
            rows.append([row["model"], f"`{row['cut']}`", wiring, *saved, error, "yes" if recommended else ""])
    return output.table([*header, "recommended"], rows)


def _row(name: str, config: PlanConfig, device: torch.device) -> dict[str, Any]:
    step, clock = Step(config, name), clock_of(config.on.clock)
    image, label = step.batch(config.batch_size)
    with step.autocast:
        found = pfb.plan(step.model, image, config.prune, repeats=config.repeats, clock=clock)
    best = found.recommended

    def pruned_step() -> None:
        step(image, label)

    def full_step() -> None:
        assert step.blocker is not None
        with step.blocker.paused():
            step(image, label)

    steps: dict[str, tuple[Prediction, dict[str, Any]]] = {
        "reuse": (best.reuse, {"shallow": "reuse", "importance": pfb.RareFirst()}),
        "recompute": (best.recompute, {"shallow": "recompute", "importance": pfb.RareFirst()}),
        **({} if found.sketch is None else {"sketch": (found.sketch, {})}),
    }
    seconds: dict[str, Spread] = {}
    for kind, (_, settings) in steps.items():
        with pfb.attach(step.model, found.cut, config.prune, **settings) as step.blocker:
            times = interleaved_seconds({"full": full_step, "pruned": pruned_step}, device, config.repeats, clock=clock)
        seconds[kind] = Spread.of_ratios(times["pruned"], times["full"])
    return {
        "model": name,
        "cut": found.cut,
        "recommended": found.shallow if found.sketch is None else "sketch",
        "predicted": {kind: prediction.step_ratio for kind, (prediction, _) in steps.items()},
        "measured": {wiring: asdict(spread) for wiring, spread in seconds.items()},
        "shallow_share": best.shallow_share,
    }
