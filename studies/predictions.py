"""Does ``pfb.plan`` predict what is then measured? Plans for several architectures beside real
pruned steps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import pfb
from pfb.lab.bench import output
from pfb.lab.bench.step import Step
from pfb.measure import Spread, clock_of, interleaved_seconds


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
    device: str | None = None
    """By default the accelerator if there is one, else the CPU."""
    threads: int | None = None
    clock: Literal["wall", "cpu"] = "wall"
    """Elapsed seconds, or CPU seconds of this process."""
    precision: Literal["no", "bf16"] = "no"
    channels_last: bool = False
    out: Path = Path("runs/plan.json")
    """All numbers (.json) and, beside it, the table (.md)."""


def run(config: PlanConfig) -> Path:
    """Plan, measure, write the numbers and the table; returns the table's path."""
    from rich.progress import track

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = output.device_of(config.device)
    rows = [_row(name, config, device) for name in track(config.models, "models")]
    numbers = {**output.origin(asdict(config), device), "rows": rows}
    return output.write(config.out, numbers, render(numbers))


def render(numbers: dict[str, Any]) -> str:
    """Markdown table; time saved in percent of a full step, and the prediction's error in
    points.
    """
    lines = [
        "| model | cut | wiring | saved, predicted | saved, measured (quartiles) | error, points | recommended |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in numbers["rows"]:
        for wiring, measured in row["measured"].items():
            predicted = row["predicted"][wiring]
            lines.append(
                f"| {row['model']} | `{row['cut']}` | {wiring} | {1 - predicted:.1%} | {1 - measured['median']:.1%} "
                f"({1 - measured['high']:.1%} to {1 - measured['low']:.1%}) | "
                f"{100 * (measured['median'] - predicted):+.1f} | {'yes' if wiring == row['recommended'] else ''} |"
            )
    return "\n".join(lines) + "\n"


def _row(name: str, config: PlanConfig, device: torch.device) -> dict[str, Any]:
    step, clock = Step(config, device, name), clock_of(config.clock)
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

    seconds: dict[str, Spread] = {}
    wirings: tuple[Literal["reuse", "recompute"], ...] = ("reuse", "recompute")
    for wiring in wirings:
        with pfb.attach(step.model, found.cut, config.prune, shallow=wiring) as step.blocker:
            times = interleaved_seconds({"full": full_step, "pruned": pruned_step}, device, config.repeats, clock=clock)
        seconds[wiring] = Spread.of_ratios(times["pruned"], times["full"])
    return {
        "model": name,
        "cut": found.cut,
        "recommended": found.shallow,
        "predicted": {"reuse": best.reuse.step_ratio, "recompute": best.recompute.step_ratio},
        "measured": {wiring: asdict(spread) for wiring, spread in seconds.items()},
        "shallow_share": best.shallow_share,
    }
