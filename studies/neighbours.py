"""What does a memory of neighbours cost? Its time and bytes against rows, batch and dimensions,
beside a full step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from pfb.density.neighbours import GROUP
from pfb.density.search import rows_at_once
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On, Step, check_models, full_memory
from pfb.utils.timing import Spread, clock_of, interleaved_seconds

NEGLIGIBLE = 0.005
"""Of a full step."""


@dataclass(frozen=True)
class NeighboursConfig:
    """Time isolation and update of a full memory, for features that are there already."""

    rows: tuple[int, ...] = (1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
    batches: tuple[int, ...] = (64, 256, 1024)
    dims: tuple[int, ...] = (38, 128, 512)
    """An image's sketch has 38, a text's 256."""
    around: tuple[int, int] = (65_536, 38)
    """Rows and dimensions where another of the three is varied; the batch is that of the step."""
    model: str = "resnet18"
    """Its full step is what the costs are a part of; as in pfb bench speed."""
    batch_size: int = 128
    image_size: int = 32
    classes: int = 10
    repeats: int = 5
    on: On = field(default_factory=Device)
    out: Path = Path("runs/neighbours.json")
    """All numbers (.json) and, beside it, the table (.md) and the figure (.png)."""

    def __post_init__(self) -> None:
        checks.at_least(2, rows=self.rows)
        checks.at_least(1, batches=self.batches, dims=self.dims, around=self.around, repeats=self.repeats)
        checks.at_least(1, batch_size=self.batch_size, image_size=self.image_size, classes=self.classes)


def run(config: NeighboursConfig) -> Path:
    """Measure, write the numbers, the table and the figure; returns the table's path."""
    from rich.progress import track

    device = config.on.start()
    check_models([config.model], config)
    m, d, n = *config.around, config.batch_size
    sizes = [
        *((("rows", (rows, n, d))) for rows in config.rows),
        *((("batch", (m, batch, d))) for batch in config.batches),
        *((("dimensions", (m, n, dims))) for dims in config.dims),
    ]
    full = _full_step(config, device)
    measured = {size: _measure(size, config, device) for size in track(dict.fromkeys(size for _, size in sizes), "")}
    rows = [{"varied": varied, "size": size, **measured[size]} for varied, size in sizes]
    for row in rows:  # a batch of another size is of another step
        row["share"] = _seconds(row) / full["median"] if row["size"][1] == n else None
    numbers = {**output.origin(asdict(config), device), "full_step": full, "rows": rows}
    return output.write(config.out, numbers, render, draw)


def render(numbers: dict[str, Any]) -> str:
    """Markdown table, and below it up to how many rows the cost can be neglected."""
    header = ["rows", "batch", "dimensions", "remembered, MiB", "distances, MiB", "isolation, ms (quartiles)"]
    shown: dict[tuple[int, ...], list[object]] = {}
    for row in numbers["rows"]:  # the base size stands in each series, and is shown once
        remembered, distances = (f"{row[name] / 2**20:.1f}" for name in ("bytes", "distance_bytes"))
        times = [output.milliseconds(row[part]) for part in ("isolation", "update")]
        share = "" if row["share"] is None else f"{row['share']:.2%}"
        shown.setdefault(tuple(row["size"]), [*row["size"], remembered, distances, *times, share])
    table = output.table([*header, "update, ms (quartiles)", "of a full step"], shown.values())
    config = numbers["config"]
    step = f"{config['model']}, {config['image_size']} px, batch {config['batch_size']}"
    most = negligible(numbers)
    found = "at none of these sizes" if most is None else f"up to {most:,} rows"
    return f"{table}\nBelow {NEGLIGIBLE:.1%} of a full step ({step}): {found}.\n"


def negligible(numbers: dict[str, Any]) -> int | None:
    """The most rows up to which, at all sizes measured, the cost lies below :data:`NEGLIGIBLE`;
    ``None`` if at no size.
    """
    most = None
    for row in sorted((row for row in numbers["rows"] if row["varied"] == "rows"), key=lambda row: row["size"][0]):
        if row["share"] >= NEGLIGIBLE:
            break
        most = int(row["size"][0])
    return most


def draw(numbers: dict[str, Any]) -> Figure:
    """Milliseconds against rows, on logarithmic axes, and what can be neglected."""
    figure, (axes,) = output.panels(6, 4)
    rows = [row for row in numbers["rows"] if row["varied"] == "rows"]
    for part, label in (("isolation", "isolation of a batch"), ("update", "update")):
        axes.plot(
            [row["size"][0] for row in rows], [1000 * row[part]["median"] for row in rows], marker="o", label=label
        )
    limit = 1000 * NEGLIGIBLE * numbers["full_step"]["median"]
    axes.axhline(limit, color="black", linestyle="--", linewidth=0.9, label=f"{NEGLIGIBLE:.1%} of a full step")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="rows remembered", ylabel="ms per step")
    axes.set_title(f"batch {numbers['config']['batch_size']}, {numbers['device']}", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def _full_step(config: NeighboursConfig, device: torch.device) -> dict[str, float]:
    step = Step(config, config.model)
    taken = partial(step, *step.batch(config.batch_size))
    clock = clock_of(config.on.clock)
    return asdict(Spread.of(interleaved_seconds({"full": taken}, device, config.repeats, 1, clock)["full"]))


def _measure(size: tuple[int, int, int], config: NeighboursConfig, device: torch.device) -> dict[str, Any]:
    m, n, d = size
    torch.manual_seed(0)
    memory, x_ND = full_memory(m, d, device), torch.randn(n, d, device=device)

    def update() -> None:
        memory.accumulate(x_ND)
        memory.apply()

    timed: dict[str, Callable[[], object]] = {"isolation": lambda: memory.isolation(x_ND), "update": update}
    seconds = interleaved_seconds(timed, device, config.repeats, 1, clock_of(config.on.clock))
    held = [x for x in memory.state_dict().values() if isinstance(x, torch.Tensor)]
    return {
        **{part: asdict(Spread.of(taken)) for part, taken in seconds.items()},
        "bytes": sum(x.nbytes for x in held),
        "distance_bytes": 4 * n * (min(m, rows_at_once(m, GROUP, device)) + m // GROUP),
    }


def _seconds(row: dict[str, Any]) -> float:
    return float(row["isolation"]["median"] + row["update"]["median"])
