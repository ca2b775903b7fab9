"""How much memory does it save? What a step keeps for the backward pass, and the largest batch that
fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import VARIANTS, Device, On, Step
from pfb.lab.errors import RunError

STEPS = ("full", "copies", "paper")


@dataclass(frozen=True)
class MemoryConfig:
    """Find the largest batch of a full step and of pruned ones: on a GPU by trying, else from
    what autograd keeps.
    """

    model: str = "resnet18"
    batch_size: int = 128
    """For the bytes that one step keeps."""
    image_size: int = 32
    classes: int = 10
    prune: float = 0.4
    budget_gib: float = 8.0
    """Memory to fill. On a GPU the process is held to it, so that the largest batch is found by
    steps that really run.
    """
    on: On = field(default_factory=Device)
    out: Path = Path("runs/memory.json")
    """All numbers (.json) and, beside it, the table (.md)."""

    def __post_init__(self) -> None:
        self.on.refuse("clock")
        checks.shares(prune=self.prune)
        checks.at_least(1, image_size=self.image_size, classes=self.classes)
        checks.at_least(4, batch_size=self.batch_size)  # two sizes tell what a sample adds
        if not self.budget_gib > 0:
            raise RunError(f"--budget-gib must be positive (got {self.budget_gib})")


def run(config: MemoryConfig) -> Path:
    """Measure, write the numbers and the table; returns the table's path."""
    from rich.progress import track

    device = config.on.start()
    rows = [_row(config, device, step) for step in track(STEPS, "steps")]
    numbers = {**output.origin(asdict(config), device), "rows": rows}
    return output.write(config.out, numbers, render)


def render(numbers: dict[str, Any]) -> str:
    """Markdown table; the largest batch is measured or estimated, as its heading says."""
    config = numbers["config"]
    how = "tried" if numbers["rows"][0]["largest_tried"] is not None else "estimated"
    kept = f"kept for backward at batch {config['batch_size']}, MiB"
    header = ["step", kept, f"largest batch in {config['budget_gib']:g} GiB, {how}", "of full"]
    full = max(1, numbers["rows"][0][f"largest_{how}"])
    rows = [
        [row["step"], f"{row['saved_bytes'] / 2**20:.0f}", row[f"largest_{how}"], f"{row[f'largest_{how}'] / full:.2f}"]
        for row in numbers["rows"]
    ]
    return output.table(header, rows)


def largest(fits: Callable[[int], bool], limit: int = 2**16) -> int:
    """The largest n up to ``limit`` for which ``fits(n)`` holds, if it holds for all smaller ones;
    0 if for none.

    Above 512 it may fall short by up to 1/256, to spare trials.

    Example:
        >>> largest(lambda n: n <= 300)
        300
    """
    if not fits(1):
        return 0
    low = 1
    while low < limit and fits(2 * low):
        low *= 2
    high = 2 * low  # does not fit, or is beyond the limit
    while high - low > max(1, low // 256):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return min(low, limit)


def _row(config: MemoryConfig, device: torch.device, kind: str) -> dict[str, Any]:
    step = Step(config, kind if kind in VARIANTS else None, prune=config.prune)
    half = max(2, config.batch_size // 2)
    small, whole = (step.saved_bytes(*step.batch(n)) for n in (half, config.batch_size))
    per_sample = (whole - small) / (config.batch_size - half)
    parameter_bytes = sum(p.numel() * p.element_size() for p in step.model.parameters())
    # Beside the weights, which the graph keeps as well: gradients, momentum, updates.
    fixed = whole - per_sample * config.batch_size + 3 * parameter_bytes
    return {
        "step": kind,
        "saved_bytes": whole,
        "bytes_per_sample": per_sample,
        "largest_estimated": max(0, int((config.budget_gib * 2**30 - fixed) / per_sample)),
        "largest_tried": _largest_tried(step, config, device) if device.type == "cuda" else None,
    }


def _largest_tried(step: Step, config: MemoryConfig, device: torch.device) -> int:
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, config.budget_gib * 2**30 / whole), device)

    def fits(n: int) -> bool:
        try:
            step(*step.batch(n))
            torch.cuda.synchronize(device)
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            step.optimizer.zero_grad()
            torch.cuda.empty_cache()

    try:
        return largest(fits)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
