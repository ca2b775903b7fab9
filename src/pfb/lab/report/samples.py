"""Which samples of each class went on most often, and which were stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pfb.lab.report.page import Section
from pfb.lab.report.run import Run
from pfb.lab.train.data import labels_of
from pfb.lab.train.output.records import kept_share

GRID_CLASSES = 10
GRID_SAMPLES = 8
WIDTH, LABEL, HEADING = 12.0, 1.5, 0.3
"""Inches of the figure, left of its tiles, and above them."""


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
    rows: dict[str, tuple[list[int], list[int]]] = {}
    for c, name in enumerate(source.classes[:GRID_CLASSES]):
        members = torch.nonzero((labels == c) & share.isfinite()).flatten()
        order = members[share[members].argsort(descending=True, stable=True)].tolist()
        rows[name] = order[:GRID_SAMPLES], order[: -GRID_SAMPLES - 1 : -1]
    more = len(source.classes) - len(rows)
    text = "In how many of its pruned batches a sample was kept." + (f" {more} more classes." if more > 0 else "")
    return Section(title, _sheet(rows, source.train, share), text)


def _sheet(rows: dict[str, tuple[list[int], list[int]]], dataset: Any, share: Tensor) -> Figure:
    """A row of tiles for each class, its name to their left, with the share above each tile."""
    columns, caption = 2 * GRID_SAMPLES + 1, 0.16  # part of a row's height for the text
    height = (WIDTH - LABEL) / columns / (1 - caption) * len(rows) + HEADING
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((LABEL / WIDTH, 0, 1 - LABEL / WIDTH, 1 - HEADING / height))
    for y, (name, halves) in enumerate(rows.items()):
        axes.text(-0.1, y + 0.5, name, ha="right", va="center", fontsize=8)
        for left, indices in zip((0, GRID_SAMPLES + 1), halves, strict=True):
            for x, index in enumerate(indices, start=left):
                place = (x + 0.03, x + 0.97, y + 0.97, y + caption)
                axes.imshow(_picture(dataset, index), cmap="gray", vmin=0, vmax=255, extent=place)
                shown = f"{100 * float(share[index]):.0f}%"
                axes.text(x + 0.5, y + caption * 0.85, shown, ha="center", va="bottom", fontsize=6)
    for center, heading in (GRID_SAMPLES / 2, "kept most often"), (1.5 * GRID_SAMPLES + 1, "pruned most often"):
        axes.text(center, -0.06, heading, ha="center", va="bottom", fontsize=11)
    axes.set(xlim=(0, columns), ylim=(len(rows), 0), aspect="auto")
    axes.axis("off")
    return figure


def _picture(dataset: Any, index: int) -> np.ndarray[Any, Any]:
    """A sample of an image data set as pixels ``[H, W]`` or ``[H, W, 3]`` uint8."""
    image: Tensor = dataset[index]["input"]
    image = image[0] if image.dim() == 4 else image
    pixels = image.permute(1, 2, 0)
    return (pixels[:, :, 0] if pixels.size(2) == 1 else pixels).numpy()
