"""Which samples of each class went on most often, and which were stopped."""

from __future__ import annotations

from typing import Any

import torch

from pfb.lab.report.page import Section
from pfb.lab.report.pictures import Tile, picture, sheet
from pfb.lab.report.run import Run
from pfb.lab.train.data import labels_of
from pfb.lab.train.output.records import kept_share

GRID_CLASSES = 10
GRID_SAMPLES = 8


def section(run: Run) -> Section:
    """For each class a row: the samples kept most often on the left, those pruned most often on the
    right. Without a picture where that tells nothing, or cannot be drawn; the text says which.
    """
    title = f"Kept most and pruned most often, by class ({run.name})"
    if run.config.method == "uniform":
        return Section(title, None, "Not drawn: this run stopped random samples, so which they were is chance alone.")
    assert run.records is not None
    source, share = run.source, kept_share(run.records)
    if source is None:
        return Section(title, None, f"Not drawn: the data are no longer there ({run.config.data}).")
    if (labels := labels_of(source.train)).shape != share.shape:
        return Section(title, None, "Not drawn: these samples have no class as a whole.")
    dataset: Any = source.train
    rows: dict[str, list[Tile | None]] = {}
    for c, name in enumerate(source.classes[:GRID_CLASSES]):
        members = torch.nonzero((labels == c) & share.isfinite()).flatten()
        order = members[share[members].argsort(descending=True, stable=True)].tolist()
        tiles: list[Tile | None] = [
            Tile(picture(dataset, index), f"{100 * float(share[index]):.0f}%")
            for index in (*order[:GRID_SAMPLES], *order[: -GRID_SAMPLES - 1 : -1])
        ]
        half = len(order[:GRID_SAMPLES])
        rows[name] = [*tiles[:half], *[None] * (GRID_SAMPLES + 1 - half), *tiles[half:]]
    headings = {GRID_SAMPLES / 2: "kept most often", 1.5 * GRID_SAMPLES + 1: "pruned most often"}
    more = len(source.classes) - len(rows)
    text = "In how many of its pruned batches a sample was kept." + (f" {more} more classes." if more > 0 else "")
    return Section(title, sheet(rows, 2 * GRID_SAMPLES + 1, headings), text)
