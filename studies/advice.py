"""Does `pfb.advise` say what could be spared, of six kinds of data of which it is known, and what
was best where all ways were trained: the six sets of ``studies grid``?

The claim, written before the seeds of this study were run; the reach of near-copies was chosen on
other draws (seeds 1 and 2, 3,000 samples), and when copies shade into the rest, on seed 100 of the
grid's sets:

- the share that could be spared is said within 3 points of the truth, of each kind and seed;
- to remove samples is recommended where copies are told apart clearly, and of sky beside street and
  of distinct pictures nothing;
- of the grid's sets the way that docs/redundancy.md shows to be best is recommended, with and
  without a look at what is tested on: to draw copies of log lines and source code less often, as
  the first epoch finds them, to remove the copies of clips, and to leave out signs and spoken
  digits at random;
- a pass over 12,000 images of 32 pixels takes at most 60 s of the processor, without a model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor
from torch.utils.data import DataLoader, TensorDataset

import pfb
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On
from pfb.lab.train.data.clips import frames
from pfb.lab.train.options.config import without_folders
from studies import group_data, sets
from studies.group_data import Pictures, normalised
from studies.groups import _pictures

POINTS = 0.03
SECONDS = 60.0


@dataclass(frozen=True)
class Known:
    """Samples ``[N, ...]``, perhaps labels ``[N]``, the share that could be spared if it is known,
    what may be recommended, and perhaps samples and labels of a test.
    """

    x: Tensor
    labels: Tensor | None
    spare: float | None
    may: tuple[str, ...]
    test: tuple[Tensor, ...] | None = None


def clips(n: int, pictures: Pictures, g: Generator) -> Known:
    """Two thirds are clips of 40 frames; the others, single pictures."""
    data = group_data.clips(n, pictures, g)
    count = int(data.groups.sum()) // 40
    return Known(data.x, None, 39 * count / n, ("remove",))


def distinct(n: int, pictures: Pictures, g: Generator) -> Known:
    """Pictures of several classes, none a copy."""
    order = torch.randperm(len(pictures), generator=g)[:n]
    return Known(normalised(pictures.images[order]), pictures.labels[order], 0.0, ("nothing",))


def equal(n: int, pictures: Pictures, g: Generator) -> Known:
    """A quarter is there twice, to the last bit."""
    shown = normalised(pictures.some(n - n // 4, g))
    return Known(torch.cat([shown, shown[: n // 4]]), None, n // 4 / n, ("remove",))


def tail(n: int, pictures: Pictures, g: Generator) -> Known:
    """Clips of a length with a heavy tail: many of 1 to 3 frames, few of up to 200."""
    lengths = (torch.rand(n, generator=g) ** -0.9).long().clamp_max(200)
    lengths = lengths[: int((lengths.cumsum(0) < n).sum()) + 1]
    lengths[-1] -= int(lengths.sum()) - n
    shown = pictures.some(len(lengths), g).repeat_interleave(lengths, 0)
    return Known(normalised(frames(shown, g)), None, 1 - len(lengths) / n, ("remove",))


def sky(n: int, pictures: Pictures, g: Generator) -> Known:
    """30 % smooth pictures in shades of blue, none a copy, beside street."""
    data = group_data.sky(n, pictures, g)
    return Known(data.x, data.groups, 0.0, ("nothing",))


def events(n: int, pictures: Pictures, g: Generator) -> Known:
    """8 still cameras; in 4 % of the frames something is seen."""
    data = group_data.events(n, pictures, g)
    return Known(data.x, data.groups, (n - int(data.groups.sum()) - 8) / n, ("remove",))


KNOWN: dict[str, Callable[[int, Pictures, Generator], Known]] = {
    made.__name__: made for made in (clips, distinct, equal, tail, sky, events)
}
"""By name."""
BEST: dict[sets.SetName, str] = {
    "logs": "draw",
    "code": "draw",
    "clips": "remove",
    "tail": "remove",
    "signs": "random",
    "digits": "random",
}
"""What docs/redundancy.md shows to be best, of the sets of ``studies grid``."""
TRAINED = {f"grid, {name}{end}": name for name in BEST for end in ("", " and its test")}


def trained(kind: str, config: AdviceConfig, seed: int) -> Known:
    """A set of the grid, as it was trained on but for augmentation."""
    name = TRAINED[kind]
    task = sets.make(name, config.folder, seed, config.data, tiny=config.samples < 6_000)
    see = task.prepare if task.images else Tensor.long
    test = (see(task.x_test), *(() if task.labels is None else (task.y_test,)))
    return Known(see(task.x), task.labels, None, (BEST[name],), test if kind.endswith("test") else None)


@dataclass(frozen=True)
class AdviceConfig:
    """Ask the adviser about data whose answer is known, or was found by training."""

    data: str = "cifar10"
    """cifar10, cifar100, digits or imagefolder:PATH of small images, of which data are made."""
    kinds: tuple[str, ...] = (*KNOWN, *TRAINED)
    seeds: tuple[int, ...] = (11, 12, 13)
    samples: int = 12_000
    """Of the first six."""
    folder: Path = Path("data")
    """Where loghub.npz, gtsrb10.npz and fsdd.npz lie."""
    batch_size: int = 128
    on: On = field(default_factory=Device)
    out: Path = Path("runs/advice.json")
    """All numbers (.json) and, beside it, the table (.md) and the figure (.png)."""

    def __post_init__(self) -> None:
        self.on.refuse("precision", "channels_last")
        checks.known((*KNOWN, *TRAINED), kinds=self.kinds)
        checks.at_least(0, seeds=self.seeds)
        checks.at_least(64, samples=self.samples)


def run(config: AdviceConfig) -> Path:
    """Ask, and write numbers, table and figure; returns the table's path."""
    device = config.on.start()
    pictures = _pictures(config.data)
    rows = [
        {"kind": kind, "seed": seed, **asked(kind, config, pictures, seed)}
        for kind in config.kinds
        for seed in config.seeds
    ]
    settings = without_folders(asdict(config)) | {"folder": ""}
    return output.write(config.out, {**output.origin(settings, device), "rows": rows}, render, draw)


def asked(kind: str, config: AdviceConfig, pictures: Pictures, seed: int) -> dict[str, Any]:
    """What is said of one draw, beside the truth."""
    g = Generator().manual_seed(seed)
    known = trained(kind, config, seed) if kind in TRAINED else KNOWN[kind](config.samples, pictures, g)
    order = torch.randperm(len(known.x), generator=g)
    parts = [known.x[order]] if known.labels is None else [known.x[order], known.labels[order]]
    test = None if known.test is None else DataLoader(TensorDataset(*known.test), config.batch_size)
    begin = time.process_time()
    advice = pfb.advise(None, DataLoader(TensorDataset(*parts), config.batch_size), test=test)
    return {
        "truth": known.spare,
        "said": advice.spare,
        "unclear": advice.copies.unclear,
        "recommended": advice.recommendation,
        "may": list(known.may),
        "kept": advice.shares.by_group if advice.shares is not None else {},
        "seconds": time.process_time() - begin,
    }


def render(numbers: dict[str, Any]) -> str:
    """Markdown table, a row for each kind of data."""
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in numbers["rows"]):
        rows = [row for row in numbers["rows"] if row["kind"] == kind]
        known = [row for row in rows if row["truth"] is not None]
        worst = max((row["said"] - row["truth"] for row in known), key=abs, default=0.0)
        kinds = sorted({row["recommended"] for row in rows})
        met = abs(worst) <= POINTS and all(row["recommended"] in row["may"] for row in rows)
        said = [f"{statistics.fmean(row['truth'] for row in known):.1%}" if known else ""]
        said += [f"{statistics.fmean(row['said'] for row in rows):.1%}", f"{100 * worst:+.1f}" if known else ""]
        unclear = f"{statistics.fmean(row['unclear'] for row in rows):.1%}"
        seconds = max(row["seconds"] for row in rows)
        lines.append(
            [kind, *said, unclear, ", ".join(kinds), f"{seconds:.0f}"]
            + ["met" if met and seconds <= SECONDS else "missed"]
        )
    return output.table(
        ["data", "could be spared", "said", "worst, points", "unclear", "recommended", "at most, CPU s", "goal"], lines
    )


def draw(numbers: dict[str, Any]) -> Figure:
    """What is said over what is true."""
    figure, (axes,) = output.panels(5, 5)
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=0.9)
    for kind in dict.fromkeys(row["kind"] for row in numbers["rows"]):
        rows = [row for row in numbers["rows"] if row["kind"] == kind and row["truth"] is not None]
        axes.plot([row["truth"] for row in rows], [row["said"] for row in rows], "o", label=kind)
    axes.set_xlabel("share that could be spared")
    axes.set_ylabel("as pfb.advise says")
    axes.legend(fontsize=8)
    return figure
