"""How many samples can find_copies compare? Its time and memory up to a million, and what its index
misses of what comparing all pairs finds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfb.copies.near_duplicates import MOST_COMPARED, find_copies
from pfb.features.sketch import Sketch
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On
from pfb.lab.errors import RunError
from pfb.lab.train.data import load
from pfb.lab.train.data.clips import frames
from pfb.lab.train.data.source import InMemory
from pfb.lab.train.options.config import TrainConfig
from studies.own_process import Taken, taken
from studies.pairs import ALONE, of_groups

FRAMES = 20
DRAWN = 1000  # images at a time
MIB = 2**20


@dataclass(frozen=True)
class ScaleConfig:
    """Make as many sketches as are asked for, a tenth of them of clips of 20 frames and the others
    all different, and search them; at 50,000 by all pairs, too.
    """

    data: str = "cifar10"
    """As in pfb train; small images."""
    samples: tuple[int, ...] = (50_000, 1_000_000)
    on: On = field(default_factory=Device)
    out: Path = Path("runs/scale.json")
    """All numbers (.json) and, beside it, the table (.md)."""

    def __post_init__(self) -> None:
        self.on.refuse("precision", "channels_last", "clock")
        checks.at_least(1000, samples=self.samples)


def run(config: ScaleConfig) -> Path:
    """Search, then write numbers and table; returns the table's path."""
    config.on.start()
    train = load(TrainConfig(data=config.data)).train
    if not isinstance(train, InMemory) or train.images.dtype != torch.uint8:
        raise RunError(f"--data must hold small images (got {config.data!r})")
    rows = []
    for n in config.samples:
        x_ND, scene_N = sketches(train.images, n)
        ways = (False, True) if n <= MOST_COMPARED else (False,)
        found = {exact: taken(search, x_ND, exact, threads=config.on.threads) for exact in ways}
        rows += [_row(n, exact, took, found.get(True), scene_N) for exact, took in found.items()]
    settings = asdict(config) | {"data": config.data.rsplit("/", 1)[-1]}
    return output.write(config.out, {**output.origin(settings, torch.device("cpu")), "rows": rows}, render)


def render(numbers: dict[str, Any]) -> str:
    """Markdown table."""
    header = [
        "samples",
        "compared",
        "minutes",
        "CPU minutes",
        "memory, MiB",
        "groups",
        "precision",
        "recall",
        "of all pairs' copies",
    ]
    rows = [
        [
            f"{row['samples']:,}",
            "all pairs" if row["exact"] else "index",
            f"{row['seconds'] / 60:.1f}",
            f"{row['cpu_seconds'] / 60:.1f}",
            f"{row['peak_bytes'] / MIB:,.0f}",
            f"{row['groups']:,}",
            f"{row['precision']:.3f}",
            f"{row['recall']:.3f}",
            "" if row["found_again"] is None else f"{row['found_again']:.4f}",
        ]
        for row in numbers["rows"]
    ]
    return output.table(header, rows)


def sketches(images: Tensor, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sketches ``[n, D]``, shuffled, and the scene that each shows, ``[n]``: of a tenth as frames
    of mixed images, the others mixtures of the sketches of two images.
    """
    generator = torch.Generator().manual_seed(seed)
    scenes = n // 10 // FRAMES
    singles = n - scenes * FRAMES
    sketch = Sketch()
    counts = [min(DRAWN // FRAMES, scenes - start) for start in range(0, scenes, DRAWN // FRAMES)]
    mixed = (_mixed(images, count, generator).to(torch.uint8) for count in counts)
    parts = [sketch(frames(few.repeat_interleave(FRAMES, 0), generator).float() / 255) for few in mixed]
    whole = torch.cat([sketch(part.float() / 255) for part in torch.split(images, DRAWN)])
    parts.append(_mixed(whole, singles, generator))
    shows = torch.cat([torch.arange(scenes).repeat_interleave(FRAMES), torch.full((singles,), ALONE)])
    order = torch.randperm(n, generator=generator)
    return torch.cat(parts)[order], shows[order]


def _mixed(rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    one, two = torch.randint(len(rows), (2, n), generator=generator)
    share = 0.3 + 0.4 * torch.rand(n, *(1 for _ in rows.shape[1:]), generator=generator)
    return torch.lerp(rows[one].float(), rows[two].float(), share)


def search(x_ND: Tensor, exact: bool) -> tuple[tuple[tuple[int, ...], ...], Tensor]:
    """Groups, and which samples are near-copies."""
    found = find_copies(x_ND, images=True, exact=exact)
    return found.groups, found.near


def _row(n: int, exact: bool, took: Taken, every: Taken | None, scene_N: Tensor) -> dict[str, Any]:
    if took.error:
        raise RunError(f"the search of {n:,} samples failed: {took.error}")
    groups, near_N = took.result
    again = None
    if every is not None and not exact:
        again = float(near_N[every.result[1]].double().mean())
    return {
        "samples": n,
        "exact": exact,
        "seconds": took.seconds,
        "cpu_seconds": took.cpu_seconds,
        "peak_bytes": took.peak_bytes,
        "groups": len(groups),
        "near": int(near_N.sum()),
        "found_again": again,
        **of_groups(groups, scene_N),
    }
