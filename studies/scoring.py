"""What does scoring cost? Its time against samples, centers and dimensions, beside the literal form
of the equations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pfb
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On
from pfb.lab.errors import RunError
from pfb.selection.selection import keep_count, keep_largest
from pfb.utils.timing import Spread, clock_of, interleaved_seconds


@dataclass(frozen=True)
class ScoringConfig:
    """Time scoring, choosing, collecting and moving the centers, for features that are there
    already.
    """

    samples: tuple[int, ...] = (64, 128, 256, 512, 1024)
    centers: tuple[int, ...] = (16, 32, 64, 128, 256)
    dims: tuple[int, ...] = (32, 64, 128, 256, 512)
    base: tuple[int, int, int] = (256, 64, 128)
    """Samples, centers and dimensions where another of the three is varied."""
    repeats: int = 20
    on: On = field(default_factory=Device)
    out: Path = Path("runs/scoring.json")
    """All numbers (.json) and, beside it, the table (.md) and the figure (.png)."""

    def __post_init__(self) -> None:
        self.on.refuse("precision", "channels_last")
        checks.at_least(1, samples=self.samples, dims=self.dims, repeats=self.repeats, base=self.base)
        checks.at_least(2, centers=self.centers)
        if self.base[1] < 2:
            raise RunError(f"--base needs at least 2 centers, its second number (got {self.base[1]})")


def run(config: ScoringConfig) -> Path:
    """Measure, write the numbers, the table and the figure; returns the table's path."""
    from rich.progress import track

    device = config.on.start()
    n, c, d = config.base
    sizes = {
        "samples": [(size, c, d) for size in config.samples],
        "centers": [(n, size, d) for size in config.centers],
        "dims": [(n, c, size) for size in config.dims],
    }
    rows = [
        {"varied": varied, "size": size, **_measure(size, config, device)}
        for varied, size in track([(v, s) for v, some in sizes.items() for s in some], "sizes")
    ]
    numbers = {**output.origin(asdict(config), device), "rows": rows}
    return output.write(config.out, numbers, render, draw)


def render(numbers: dict[str, Any]) -> str:
    """Markdown table of both forms and the factor between them, taken round by round."""
    header = ["samples", "centers", "dimensions", "pfb, ms (quartiles)", "literal, ms (quartiles)", "literal / pfb"]
    shown: dict[tuple[int, ...], list[object]] = {}
    for row in numbers["rows"]:  # the base size stands in each series, and is shown once
        forms = [output.milliseconds(row["pfb"]), output.milliseconds(row["literal"])]
        shown.setdefault(tuple(row["size"]), [*row["size"], *forms, f"{row['factor']['median']:.0f}"])
    return output.table(header, shown.values())


def draw(numbers: dict[str, Any]) -> Figure:
    """Milliseconds on logarithmic axes, one panel for each of the three sizes."""
    figure, panels = output.panels(12, 4, 3, sharey=True)
    names = {"samples": "samples N", "centers": "centers C", "dims": "dimensions D"}
    for place, (axes, varied) in enumerate(zip(panels, names, strict=True)):
        rows = [row for row in numbers["rows"] if row["varied"] == varied]
        sizes = [row["size"][place] for row in rows]
        for form, label in (("literal", "literal: float64 differences, Cholesky"), ("pfb", "pfb")):
            medians = [1000 * row[form]["median"] for row in rows]
            spread = [
                [1000 * (row[form]["median"] - row[form]["low"]) for row in rows],
                [1000 * (row[form]["high"] - row[form]["median"]) for row in rows],
            ]
            axes.errorbar(sizes, medians, spread, marker="o", capsize=3, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set(xlabel=names[varied])
    figure.axes[0].set_ylabel("ms per step")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(f"Scoring, choosing and moving the centers on {numbers['device']}", fontsize=10)
    return figure


def _measure(size: tuple[int, int, int], config: ScoringConfig, device: torch.device) -> dict[str, Any]:
    n, c, d = size
    torch.manual_seed(0)
    x_ND = torch.randn(n, d, device=device)
    estimator = pfb.DensityEstimator(c)
    estimator.accumulate(torch.randn(max(c, n), d, device=device))
    estimator.apply()
    k = keep_count(n, 0.4)
    importance = pfb.RareFirst()

    def fast() -> None:
        kept = keep_largest(importance(x_ND, estimator), k)
        estimator.accumulate(x_ND.index_select(0, kept))
        estimator.apply()

    timed: dict[str, Callable[[], object]] = {"pfb": fast, "literal": _Literal(x_ND, estimator, k)}
    seconds = interleaved_seconds(timed, device, config.repeats, clock=clock_of(config.on.clock))
    return {
        "pfb": asdict(Spread.of(seconds["pfb"])),
        "literal": asdict(Spread.of(seconds["literal"])),
        "factor": asdict(Spread.of_ratios(seconds["literal"], seconds["pfb"])),
    }


class _Literal:
    """The equations as one would first write them down, and as the authors describe their code:
    differences of every sample and center in float64, a dense bandwidth matrix and its Cholesky
    factor, counts read on the host.
    """

    def __init__(self, x_ND: Tensor, estimator: pfb.DensityEstimator, k: int) -> None:
        centers, counts, bandwidth = estimator.centers, estimator.counts, estimator.bandwidth
        assert centers is not None and counts is not None and bandwidth is not None
        self.x_ND, self.k = x_ND.double(), k
        self.centers_CD, self.counts_C = centers.double(), counts.double()
        self.bandwidth_D = bandwidth.double()

    def __call__(self) -> None:
        differences_CDN = self.centers_CD[:, :, None] - self.x_ND.T[None]
        factor_DD = torch.linalg.cholesky(torch.diag(self.bandwidth_D.square()))
        solved = torch.linalg.solve_triangular(factor_DD, differences_CDN, upper=False)
        distances_CN = solved.square().sum(1)
        weights_C = self.counts_C / self.counts_C.sum() / len(self.counts_C)
        density_N = torch.logsumexp(-0.5 * distances_CN + weights_C.log()[:, None], dim=0)
        kept = density_N.topk(self.k, largest=False).indices
        nearest = distances_CN[:, kept].argmin(0)
        for j in nearest.unique().tolist():
            mean_D = self.x_ND[kept[nearest == j]].mean(0)
            self.centers_CD[j] = 0.99 * self.centers_CD[j] + 0.01 * mean_D
            self.counts_C[j] += int((nearest == j).sum())
