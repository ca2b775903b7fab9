"""How much time does it save? Whole training steps of every variant, in turn, on one model and batch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

import pfb
from pfb.gate import Gate
from pfb.measure import Spread, count_saved_bytes, interleaved_seconds
from pfb.selection import keep_count
from pfb.train import checkpoint
from pfb.train.models import build
from pfb.train.versions import processor, versions
from pfb.wiring import output_of

VARIANTS: dict[str, dict[str, Any]] = {
    "reuse": {"shallow": "reuse"},
    "recompute": {"shallow": "recompute"},
    "recompute-half": {"shallow": "recompute", "scoring_scale": 0.5},
    "uniform-reuse": {"shallow": "reuse", "importance": pfb.Uniform()},
    "uniform-recompute": {"shallow": "recompute", "importance": pfb.Uniform()},
}
"""What each variant passes to ``pfb.attach``; ``full`` and ``ideal`` (a step on the kept samples alone) come with them."""


@dataclass(frozen=True)
class SpeedConfig:
    """Time full, pruned and ideal training steps in turn."""

    model: str = "resnet18"
    batch_size: int = 128
    image_size: int = 32
    classes: int = 10
    cut: str | None = None
    """Layer after which samples are stopped; by default the first stage."""
    prunes: tuple[float, ...] = (0.4,)
    repeats: int = 10
    warmup: int = 2
    precision: Literal["no", "bf16"] = "no"
    channels_last: bool = False
    device: str | None = None
    """By default the accelerator if there is one, else the CPU."""
    threads: int | None = None
    """CPU threads; 1 with --clock cpu gives the steadiest figures on a busy machine."""
    clock: Literal["wall", "cpu"] = "wall"
    """Elapsed seconds, or CPU seconds of this process."""
    out: Path = Path("runs/speed.json")
    """All numbers (.json) and, beside it, the table (.md)."""


def run(config: SpeedConfig) -> Path:
    """Measure, write the numbers and the table; returns the table's path."""
    from rich.console import Console
    from rich.progress import Progress

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = torch.device(config.device or accelerator or "cpu")
    results = []
    with Progress() as progress:
        for prune in config.prunes:
            task = progress.add_task(f"prune {prune:g}", total=config.warmup + config.repeats)
            results.append(_measure(config, device, prune, lambda task=task: progress.advance(task)))  # type: ignore[misc]
    numbers = {
        "config": {name: value for name, value in asdict(config).items() if name != "out"},
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "results": results,
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(config.out, json.dumps(numbers, indent=1))
    table = config.out.with_suffix(".md")
    checkpoint.write_text(table, render(numbers))
    Console().print(table.read_text(), highlight=False, markup=False)
    return table


def render(numbers: dict[str, Any]) -> str:
    """Markdown table of the measured steps, ratios to the full step taken round by round."""
    lines = [
        "| prune | step | median s | of a full step (quartiles) | time saved | kept for backward, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for result in numbers["results"]:
        for name, row in result["steps"].items():
            ratio = row["ratio"]
            lines.append(
                f"| {result['prune']:g} | {name} | {row['seconds']['median']:.4f} | {ratio['median']:.3f} "
                f"({ratio['low']:.3f} to {ratio['high']:.3f}) | {1 - ratio['median']:.1%} | "
                f"{row['saved_bytes'] / 2**20:.0f} |"
            )
        share = result["scoring_share"]
        lines.append(
            f"| {result['prune']:g} | scoring alone | {result['scoring_seconds']['median']:.5f} | {share:.2%} | | |"
        )
    return "\n".join(lines) + "\n"


def _measure(config: SpeedConfig, device: torch.device, prune: float, on_round: Callable[[], None]) -> dict[str, Any]:
    torch.manual_seed(0)
    image = torch.randn(config.batch_size, 3, config.image_size, config.image_size, device=device)
    if config.channels_last:
        image = image.to(memory_format=torch.channels_last)
    label = torch.randint(config.classes, (config.batch_size,), device=device)
    kept = keep_count(config.batch_size, prune)
    steps = {"full": _Step(config, device, image, label), "ideal": _Step(config, device, image[:kept], label[:kept])}
    for name, arguments in VARIANTS.items():
        steps[name] = _Step(config, device, image, label, {"cut": config.cut, "prune": prune, **arguments})
    scoring = _Scoring(steps["reuse"])
    clock = time.process_time if config.clock == "cpu" else time.perf_counter
    seconds = interleaved_seconds(
        {**{name: step.__call__ for name, step in steps.items()}, "scoring": scoring},
        device,
        config.repeats,
        config.warmup,
        clock,
        on_round,
    )
    rows = {}
    for name, step in steps.items():
        with count_saved_bytes() as saved:
            step.forward()
        rows[name] = {
            "seconds": asdict(Spread.of(seconds[name])),
            "ratio": asdict(Spread.of_ratios(seconds[name], seconds["full"])),
            "saved_bytes": saved.total,
            "raw": seconds[name],
        }
    return {
        "prune": prune,
        "kept": kept,
        "cut": steps["reuse"].blocker.cut,  # type: ignore[union-attr]
        "steps": rows,
        "scoring_seconds": asdict(Spread.of(seconds["scoring"])),
        "scoring_share": Spread.of_ratios(seconds["scoring"], seconds["full"]).median,
    }


class _Step:
    """One optimizer step of a fresh model, pruned if there are arguments for ``attach``."""

    def __init__(
        self,
        config: SpeedConfig,
        device: torch.device,
        image: Tensor,
        label: Tensor,
        attach: dict[str, Any] | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.model = build(config.model, config.classes, 3, config.image_size).to(device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.image, self.label = image, label
        self.blocker = None if attach is None else pfb.attach(self.model, **attach)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")

    def forward(self) -> Tensor:
        with self.autocast:
            logits = self.model(self.image)
            return F.cross_entropy(logits, self.blocker.select(self.label) if self.blocker else self.label)

    def __call__(self) -> None:
        self.forward().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.blocker:
            self.blocker.step()


class _Scoring:
    """What pfb adds to a step: pooling, density, selection, collecting, and moving the centers."""

    def __init__(self, step: _Step) -> None:
        assert step.blocker is not None
        self.estimator = step.blocker.estimator
        self.gate: Gate = step.blocker._gate
        self.output = output_of(step.model, step.model.get_submodule(step.blocker.cut), (step.image,), {})

    def __call__(self) -> None:
        self.gate.decide(self.output)
        self.estimator.apply()
        self.gate.end_step()
        self.gate.reached = True
