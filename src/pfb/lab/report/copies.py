"""What was a near-copy of what: the samples stopped most often, and the nearest sample to each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfb.density.neighbours import GROUP
from pfb.density.search import LEAST_DIMENSIONS, least_of_groups, usual_square
from pfb.lab.report.page import Section
from pfb.lab.report.pictures import Tile, picture, sheet
from pfb.lab.report.run import Run
from pfb.lab.train.data import Source
from pfb.lab.train.data.dropped import sketches
from pfb.lab.train.data.source import InMemory
from pfb.lab.train.methods import method_of
from pfb.lab.train.output.records import kept_share

SHOWN = 15
PER_ROW = 5
LOOKED_AT = 200
"""So many of the samples stopped most are compared with all others; and as many from all over the
data, to know what is usual."""
NEAR = 0.5
"""Part of the usual distance below which two samples are of one group."""
MOST, MOST_DECODED = 100_000, 3_000
"""Samples that are compared at most: in memory, and of those that are read from their files."""


def sections(run: Run) -> list[Section]:
    """For a run that judged images by their sketch: the samples stopped most often, each with its
    nearest other one, by the exact distance of their sketches.
    """
    if not method_of(run.config.method).judges_stored or (source := run.source) is None or source.task == "language":
        return []
    assert run.records is not None
    title, samples = f"What was near what ({run.name})", len(run.records["seen"])
    most = MOST if isinstance(source.train, InMemory) else MOST_DECODED
    if samples > most:
        return [Section(title, None, f"Not drawn: {samples:,} samples are more than are compared here ({most:,}).")]
    share, dataset = kept_share(run.records), source.train
    density = run.records["log_density"].nan_to_num(-torch.inf)
    order = density.argsort(descending=True, stable=True)
    order = order[share[order].nan_to_num(1.0).argsort(stable=True)]  # of equally many times, the densest first
    features = sketched(source)
    stopped = order[:LOOKED_AT]
    distances = to_others(features, stopped)
    usual = max(usual_distance(features), 1e-12)
    met: set[int] = set()
    tiles: list[Tile | None] = []
    for index, to_N in zip(stopped.tolist(), distances / usual, strict=True):
        other, group = int(to_N.argmin()), {index, *torch.nonzero(to_N < NEAR).flatten().tolist()}
        if not group & met and len(tiles) < 3 * SHOWN:
            alike = f", one of {len(group)}" if len(group) > 1 else ""
            tiles += [
                Tile(picture(dataset, index), f"#{index}{alike}\nkept {100 * float(share[index]):.0f}%"),
                Tile(picture(dataset, other), f"#{other}\ndistance {float(to_N[other]):.2f}"),
                None,
            ]
        met |= group  # of which only the first is shown
    rows = {" " * row: tiles[3 * PER_ROW * row :][: 3 * PER_ROW] for row in range(-(-len(tiles) // (3 * PER_ROW)))}
    text = (
        "The samples that were stopped most often, each with the nearest of all other samples to its right; # is the "
        "index in samples.csv. Distances of their sketches, in proportion to what is usual where nothing is a copy: "
        f"near 0 is a copy, about 1 is no nearer than any. Of a group (nearer than {NEAR}) only the first is shown."
    )
    return [Section(title, sheet(rows, 3 * PER_ROW - 1, {}, caption=0.32), text)]


@torch.no_grad()
def sketched(source: Source) -> Tensor:
    """Sketches ``[N, D]`` of all training samples, in units of their standard deviations."""
    features = sketches(source)
    deviation = features.std(0)
    alive = deviation > 1e-5 * deviation.max()
    return (features[:, alive] - features[:, alive].mean(0)) / deviation[alive]


def usual_distance(features: Tensor) -> float:
    """What the nearest of all samples would be away from a usual one if there were no copies: as
    the memory of neighbours tells it, from the nearest of four, which seldom is a copy however many
    there are.
    """
    n = len(features)
    spread = torch.linspace(0, n - 1, min(n, LOOKED_AT)).long()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    squares = to_others(features, spread)[:, order].square()
    group = min(GROUP, n)
    usual = float(usual_square(least_of_groups(squares, group), torch.tensor(n), group).sqrt().median())
    return usual * math.pow(group / n, 1 / LEAST_DIMENSIONS)


def to_others(features: Tensor, indices: Tensor) -> Tensor:
    """Distances ``[len(indices), N]`` of some samples to all, to themselves infinite.

    Example:
        >>> to_others(torch.tensor([[0.0], [3.0], [1.0]]), torch.tensor([0, 1]))
        tensor([[inf, 3., 1.],
                [3., inf, 2.]])
    """
    distances = torch.cdist(features[indices], features, compute_mode="donot_use_mm_for_euclid_dist")
    distances[torch.arange(len(indices)), indices] = torch.inf
    return distances
