"""What many GPUs would do: an estimate on paper from the measured parts of a step, with every
assumption in a field of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfb.density.neighbours import most_per_step
from pfb.lab.bench import output
from pfb.lab.bench.setup import network
from pfb.lab.bench.speed import SpeedConfig

FLOAT = 4
"""Bytes of a gradient and of a feature: both are kept in float32 under autocast."""
FEATURES = 38
"""Of an image's sketch; a text's has 256, which changes the all-gather alone."""
MEMORY = 4096
"""Rows of the memory, the default."""


@dataclass(frozen=True)
class Cluster:
    """GPUs and what connects them. Both numbers are assumed."""

    gpus: int
    bandwidth: float
    """Bytes per second at which a ring moves what every GPU sends."""
    latency: float
    """Seconds that a collective takes for nothing."""
    what: str


CLUSTERS = (
    Cluster(8, 300e9, 30e-6, "one machine, NVLink"),
    Cluster(64, 40e9, 100e-6, "eight machines, a 400 Gb/s port for each GPU"),
)
BACKWARD = 2 / 3
"""Of a step's time: behind it DDP hides the gradients' all-reduce..."""
LAST_BUCKET = 25 * 2**20
"""...but for the bytes of the last bucket, which wait for the end of it."""


@dataclass(frozen=True)
class Part:
    """One GPU's step, full and pruned."""

    model: str
    parameters: int
    seconds: float
    prune: float
    ratio: float
    """Of the pruned step to the full one, on one GPU."""
    measured: bool


ASSUMED = Part("resnet50, assumed: 256 images in 0.1 s, a pruned step ideal", 25_557_032, 0.1, 0.5, 0.5, False)


def reduced(bytes: float, cluster: Cluster) -> float:
    """Seconds of an all-reduce in a ring.

    Example:
        >>> reduced(1e9, Cluster(2, 1e9, 0.0, ""))
        1.0
    """
    return cluster.latency + 2 * (cluster.gpus - 1) / cluster.gpus * bytes / cluster.bandwidth


def given(size: int, features: int, processes: int) -> int:
    """Bytes that each process gives to the memory's all-gather: its rows, with one for the step's
    number, and for each a mark.
    """
    return FLOAT * (most_per_step(size, processes) + 1) * (features + 1)


def gathered(cluster: Cluster, size: int = MEMORY, features: int = FEATURES) -> float:
    """Seconds of the memory's all-gather; each GPU gives its part of the rows."""
    return cluster.latency + (cluster.gpus - 1) * given(size, features, cluster.gpus) / cluster.bandwidth


def exposed(seconds: float, gradient_bytes: float, cluster: Cluster) -> float:
    """Seconds for which the gradients' all-reduce outlasts the backward pass of a step of so many
    seconds.

    Example:
        >>> slow = Cluster(2, 1e9, 0.0, "")
        >>> round(exposed(0.3, 1e9, slow), 6), round(exposed(30.0, 1e9, slow), 6)
        (0.8, 0.026214)
    """
    last = reduced(min(gradient_bytes, LAST_BUCKET), cluster)
    return max(last, reduced(gradient_bytes, cluster) - BACKWARD * seconds)


def saved(part: Part, cluster: Cluster) -> float:
    """Share of a step's time that pruning saves on so many GPUs."""
    full, pruned = part.seconds, part.seconds * part.ratio
    bytes = FLOAT * part.parameters
    before = full + exposed(full, bytes, cluster)
    return 1 - (pruned + exposed(pruned, bytes, cluster) + gathered(cluster)) / before


def estimates(folder: Path | None) -> list[dict[str, Any]]:
    """A row per step and cluster: of the steps that a folder of ``pfb bench speed`` results has of
    GPUs, or of one that is assumed.
    """
    parts = list(measured(folder)) if folder is not None else []
    rows = []
    for part in parts or [ASSUMED]:
        for cluster in CLUSTERS:
            bytes = FLOAT * part.parameters
            rows.append(
                {
                    **asdict(part),
                    "cluster": asdict(cluster),
                    "exposed_full": exposed(part.seconds, bytes, cluster),
                    "exposed_pruned": exposed(part.seconds * part.ratio, bytes, cluster),
                    "gathered": gathered(cluster),
                    "saved": saved(part, cluster),
                }
            )
    return rows


def measured(folder: Path) -> Iterator[Part]:
    """The parts that lie in a folder of results, of GPUs and eager steps."""
    for file in sorted(folder.glob("speed-*.json")):
        numbers = json.loads(file.read_text())
        config = numbers["config"]
        if numbers["device_type"] == "cpu" or config["compile"] != "no":
            continue
        settings = SpeedConfig(**{name: config[name] for name in ("model", "image_size", "classes")})
        parameters = sum(p.numel() for p in network(config["model"], settings).parameters())
        for result in numbers["results"]:
            if (sketch := result["steps"].get("sketch")) is not None:
                seconds = result["steps"]["full"]["seconds"]["median"]
                yield Part(
                    config["model"], parameters, seconds, result["prune"], sketch["ratio"]["median"], measured=True
                )


def render(rows: list[dict[str, Any]]) -> str:
    """Markdown table, and the assumptions below it."""
    header = ["step of one GPU", "pruned", "GPUs", "saved on one, %", "all-reduce not hidden, full / pruned, ms"]
    shown = [
        [
            f"{row['model']}, {row['parameters'] / 1e6:.1f} M parameters, {1000 * row['seconds']:.0f} ms",
            f"{row['prune']:.0%}",
            row["cluster"]["gpus"],
            f"{100 * (1 - row['ratio']):.1f}",
            f"{1000 * row['exposed_full']:.2f} / {1000 * row['exposed_pruned']:.2f}",
            f"{1000 * row['gathered']:.2f}",
            f"{100 * row['saved']:.1f}",
        ]
        for row in rows
    ]
    clusters = "; ".join(
        f"{cluster.gpus} GPUs: {cluster.what}, {cluster.bandwidth / 1e9:g} GB/s in a ring and "
        f"{1e6 * cluster.latency:g} us for a collective"
        for cluster in CLUSTERS
    )
    notes = (
        f"Assumed: {clusters}; gradients in float32, their all-reduce hidden behind the backward pass, two thirds of "
        f"a step, but for the last bucket of {LAST_BUCKET >> 20} MiB; a memory of {MEMORY:,} rows of {FEATURES} "
        "features, whose all-gather nothing hides; equally many samples on every GPU, and none that waits for data."
    )
    return output.table([*header, "memory's all-gather, ms", "saved on all, %"], shown) + "\n" + notes + "\n"
