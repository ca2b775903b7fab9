"""How much time does it save? Whole training steps of every variant, in turn, on one model and
batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import pfb
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import VARIANTS, Device, On, Step, full_memory
from pfb.lab.errors import RunError
from pfb.model import cuts
from pfb.selection.selection import keep_count
from pfb.utils.timing import Spread, clock_of, interleaved_seconds

Numbers = dict[str, Any]


@dataclass(frozen=True)
class SpeedConfig:
    """Time full, pruned and ideal training steps in turn."""

    model: str = "resnet18"
    """As in pfb train."""
    batch_size: int = 128
    image_size: int = 32
    classes: int = 10
    cut: str | None = None
    """Of the paper's method: layer after which samples stop; by default the first stage."""
    prunes: tuple[float, ...] = (0.4,)
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Beside the full step and the ideal one, which is taken on the kept samples alone."""
    memory: tuple[int, ...] = (4096, 65_536)
    """Rows of full memories with which pruning a batch is timed alone; steps keep the default."""
    repeats: int = 10
    warmup: int = 2
    """Rounds not counted; of compiled steps at least 4, in which all is compiled."""
    compile: Literal["no", "default", "reduce-overhead"] = "no"
    """torch.compile each step's model, with CUDA graphs for reduce-overhead."""
    on: On = field(default_factory=Device)
    out: Path = Path("runs/speed.json")
    """All numbers (.json) and, beside it, the table (.md)."""

    def __post_init__(self) -> None:
        checks.known(VARIANTS, variants=self.variants)
        checks.shares(prunes=self.prunes)
        checks.at_least(1, batch_size=self.batch_size, image_size=self.image_size, classes=self.classes)
        checks.at_least(1, repeats=self.repeats)
        checks.at_least(2, memory=self.memory)
        checks.at_least(0, warmup=self.warmup)


def run(config: SpeedConfig) -> Path:
    """Measure, write the numbers and the table; returns the table's path."""
    from rich.progress import Progress

    device = config.on.start()
    # Plain and pruned models of one class stand side by side here: their hooks tell them apart.
    side_by_side = torch._dynamo.config.patch(skip_nnmodule_hook_guards=False, cache_size_limit=64)
    measured = []
    with Progress() as progress, side_by_side:
        for prune in config.prunes:
            task = progress.add_task(f"prune {prune:g}", total=_warmup(config) + config.repeats)
            measured.append(_measure(config, device, prune, lambda task=task: progress.advance(task)))  # type: ignore[misc]
    numbers = {**output.origin(asdict(config), device), "results": measured}
    return output.write(config.out, numbers, render)


def render(numbers: Numbers) -> str:
    """Two Markdown tables: what each step saves at each share, and all that was measured of it."""
    return overview(numbers) + "\n" + details(numbers)


def overview(numbers: Numbers) -> str:
    """Markdown table of a row per step and a column per share: time saved, with quartiles over the
    rounds.
    """
    results = numbers["results"]
    names = [name for name in results[0]["steps"] if name != "full"]
    rows = [[name, *(_saved(result["steps"][name]) for result in results)] for name in names]
    header = [f"{result['prune']:.0%} pruned" for result in results]
    return output.table(["time of a step saved, % (quartiles)", *header], rows)


def details(numbers: Numbers) -> str:
    """Markdown table of the measured steps, ratios to the full step taken round by round."""
    header = ["prune", "step", "median ms", "of a full step (quartiles)", "more than ideal, of a full step (quartiles)"]
    rows: list[list[object]] = []
    for result in numbers["results"]:
        prune = f"{result['prune']:g}"
        for name, row in result["steps"].items():
            seconds = row["seconds"]["median"]
            more = "" if name in ("full", "ideal") else _spread(row["beyond_ideal"], 4)
            memory = [_mebibytes(row["saved_bytes"]), _mebibytes(row["peak_bytes"])]
            rate = f"{row['samples'] / seconds:.0f}"
            rows.append([prune, name, f"{1000 * seconds:.1f}", _spread(row["ratio"], 3), more, rate, *memory])
        for size, alone in result["pruner"].items():
            ms = f"{1000 * alone['seconds']['median']:.2f}"
            rows.append([prune, f"copies, pruner alone, memory {size}", ms, _spread(alone["ratio"], 4), "", "", "", ""])
    return output.table([*header, "samples/s", "kept for backward, MiB", "peak, MiB"], rows)


def _spread(values: dict[str, float], digits: int) -> str:
    return f"{values['median']:.{digits}f} ({values['low']:.{digits}f} to {values['high']:.{digits}f})"


def _saved(row: Numbers) -> str:
    median, low, high = (100 - 100 * row["ratio"][place] for place in ("median", "high", "low"))
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def _measure(config: SpeedConfig, device: torch.device, prune: float, on_round: Callable[[], None]) -> dict[str, Any]:
    kept = keep_count(config.batch_size, prune)
    steps = {name: Step(config, compile=config.compile) for name in ("full", "ideal")}
    cut = _cut(steps["full"], config)
    steps |= {name: Step(config, name, cut, prune, config.compile) for name in config.variants}
    image, label = steps["full"].batch(config.batch_size)
    batches = {name: (image[:kept], label[:kept]) if name == "ideal" else (image, label) for name in steps}
    alone = {size: _pruner(size, prune, image) for size in config.memory}
    seconds = interleaved_seconds(
        {
            **{name: partial(step, *batches[name]) for name, step in steps.items()},
            **{f"pruner {size}": partial(pruner, image, label) for size, pruner in alone.items()},
        },
        device,
        config.repeats,
        _warmup(config),
        clock_of(config.on.clock),
        on_round,
    )
    full, rows = seconds["full"], {}
    for name, step in steps.items():
        beyond = [(a - b) / c for a, b, c in zip(seconds[name], seconds["ideal"], full, strict=True)]
        rows[name] = {
            "samples": len(batches[name][1]),
            "cut": cut if name.startswith("paper") else None,
            "seconds": asdict(Spread.of(seconds[name])),
            "ratio": asdict(Spread.of_ratios(seconds[name], full)),
            "beyond_ideal": asdict(Spread.of(beyond)),
            # Of a compiled model it cannot be told.
            "saved_bytes": step.saved_bytes(*batches[name]) if config.compile == "no" else None,
            "peak_bytes": _peak_bytes(step, *batches[name]),
            "raw": output.rounded(seconds[name], 4),
        }
    pruner = {
        str(size): {
            "seconds": asdict(Spread.of(seconds[f"pruner {size}"])),
            "ratio": asdict(Spread.of_ratios(seconds[f"pruner {size}"], full)),
        }
        for size in alone
    }
    return {"prune": prune, "kept": kept, "steps": rows, "pruner": pruner}


def _cut(step: Step, config: SpeedConfig) -> str | None:
    """The cut of the paper's variants, if any is measured."""
    if not any(name.startswith("paper") for name in config.variants):
        return None
    try:
        return cuts.resolve(step.model, config.cut)[0]
    except ValueError as error:
        raise RunError(f"{config.model}: {error}") from error


def _pruner(size: int, prune: float, image: Tensor) -> pfb.BatchPruner:
    """The default, with a full memory."""
    width = pfb.Sketch()(image).size(1)
    return pfb.BatchPruner(prune, density=full_memory(size, width, image.device))


def _warmup(config: SpeedConfig) -> int:
    """Rounds that are not counted: of a compiled step all until both of its graphs are there."""
    return config.warmup if config.compile == "no" else max(config.warmup, 4)


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f}"


def _peak_bytes(step: Step, image: Tensor, label: Tensor) -> int | None:
    """The most that a step allocates on top of what is there before it; ``None`` on a CPU."""
    if step.device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(step.device)
    torch.cuda.reset_peak_memory_stats(step.device)
    step(image, label)
    return torch.cuda.max_memory_allocated(step.device) - before
