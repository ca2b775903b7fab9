"""Samples as pictures: tiles in rows, each with a line of text above it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

WIDTH = 12.0
"""Inches of a figure."""
LABEL = 1.5
"""Inches left of the tiles."""
HEADING = 0.3
"""Inches above them."""
Pixels = np.ndarray[Any, Any]


class Tile(NamedTuple):
    """A picture ``[H, W]`` or ``[H, W, 3]`` uint8, and what stands above it."""

    pixels: Pixels
    text: str


def sheet(
    rows: dict[str, list[Tile | None]], columns: int, headings: dict[float, str], caption: float = 0.16
) -> Figure:
    """Tiles in rows of at most so many columns, with the rows' names to their left.

    Args:
        rows: by name; ``None`` is a gap.
        columns: of all tiles and gaps.
        headings: by the column over which they are centered.
        caption: part of a row's height for the text.
    """
    side = (WIDTH - LABEL) / columns
    height = side / (1 - caption) * len(rows) + HEADING
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((LABEL / WIDTH, 0, 1 - LABEL / WIDTH, 1 - HEADING / height))
    for y, (name, tiles) in enumerate(rows.items()):
        axes.text(-0.1, y + 0.5, name, ha="right", va="center", fontsize=8)
        for x, tile in enumerate(tiles):
            if tile is not None:
                place = (x + 0.03, x + 0.97, y + 0.97, y + caption)
                axes.imshow(tile.pixels, cmap="gray", vmin=0, vmax=255, extent=place)
                axes.text(x + 0.5, y + caption * 0.85, tile.text, ha="center", va="bottom", fontsize=6)
    for center, heading in headings.items():
        axes.text(center, -0.06, heading, ha="center", va="bottom", fontsize=11)
    axes.set(xlim=(0, columns), ylim=(len(rows), 0), aspect="auto")
    axes.axis("off")
    return figure


def picture(dataset: Any, index: int) -> Pixels:
    """A sample of an image data set as pixels."""
    image: Tensor = dataset[index]["input"]
    image = image[0] if image.dim() == 4 else image
    pixels = image.permute(1, 2, 0)
    return (pixels[:, :, 0] if pixels.size(2) == 1 else pixels).numpy()
