"""How much memory does it save? What a step keeps for the backward pass, and the largest batch that
fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pfb.lab.bench import output
from pfb.lab.bench.step import Step

WAYS: dict[str, dict[str, Any] | None] = {
    "full": None,
    "reuse": {"shallow": "reuse"},
    "recompute": {"shallow": "recompute"},
}


@dataclass(frozen=True)
class MemoryConfig:
    """Find the largest batch of a full, a reuse and a recompute step: on a GPU by trying, else from
    what autograd keeps.
    """

    models: tuple[str, ...] = ("resnet18",)
    batch_size: int = 128
    """For the bytes that one step keeps."""
    image_size: int = 32
    classes: int = 10
    prune: float = 0.4
    budget_gib: float = 8.0
    """Memory to fill. On a GPU the process is held to it, so that the largest batch is found by
    steps that really run.
    """
    precision: Literal["no", "bf16"] = "no"
    channels_last: bool = False
    device: str | None = None
    """By default the accelerator if there is one, else the CPU."""
    out: Path = Path("runs/memory.json")
    """All numbers (.json) and, beside it, the table (.md)."""


def run(config: MemoryConfig) -> Path:
    """Measure, write the numbers and the table; returns the table's path."""
    from rich.progress import track

    device = output.device_of(config.device)
    cells = [(model, way) for model in config.models for way in WAYS]
    rows = [_row(config, device, model, way) for model, way in track(cells, "models")]
    numbers = {**output.origin(asdict(config), device), "rows": rows}
    return output.write(config.out, numbers, render(numbers))


def render(numbers: dict[str, Any]) -> str:
    """Markdown table; the largest batch is measured or estimated, as its heading says."""
    config = numbers["config"]
    how = "tried" if numbers["rows"][0]["largest_tried"] is not None else "estimated"
    lines = [
        f"| model | step | kept for backward at batch {config['batch_size']}, MiB | largest batch in "
        f"{config['budget_gib']:g} GiB, {how} | of full |",
        "|---|---|---|---|---|",
    ]
    full: dict[str, int] = {}
    for row in numbers["rows"]:
        largest = row["largest_tried"] if how == "tried" else row["largest_estimated"]
        full.setdefault(row["model"], largest)
        lines.append(
            f"| {row['model']} | {row['step']} | {row['saved_bytes'] / 2**20:.0f} | {largest} | "
            f"{largest / max(full[row['model']], 1):.2f} |"
        )
    return "\n".join(lines) + "\n"


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


def _row(config: MemoryConfig, device: torch.device, name: str, way: str) -> dict[str, Any]:
    arguments = WAYS[way]
    step = Step(config, device, name, None if arguments is None else {"prune": config.prune, **arguments})
    half = max(2, config.batch_size // 2)
    small, whole = (step.saved_bytes(*step.batch(n)) for n in (half, config.batch_size))
    per_sample = (whole - small) / (config.batch_size - half)
    parameter_bytes = sum(p.numel() * p.element_size() for p in step.model.parameters())
    fixed = whole - per_sample * config.batch_size + 4 * parameter_bytes  # weights, gradients, momentum, updates
    tried = None
    if device.type == "cuda":
        tried = _largest_tried(step, config, device)
    return {
        "model": name,
        "step": way,
        "saved_bytes": whole,
        "bytes_per_sample": per_sample,
        "largest_estimated": max(0, int((config.budget_gib * 2**30 - fixed) / per_sample)),
        "largest_tried": tried,
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
