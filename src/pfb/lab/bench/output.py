"""How a benchmark leaves its numbers: a line of JSON with all of them and where they come from, a
table, and a figure.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pfb.lab import files
from pfb.lab.origin import processor, versions

DIGITS = 9
"""Significant digits of published numbers, more than any table shows; tables are made from them."""
COLOURS = 256
"""Of a published figure: it stays small enough for a repository, and no line looks different."""


def origin(config: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What decides a result: settings (without the folder), versions, commit, device, threads."""
    settings = {name: value for name, value in config.items() if name != "out"}
    settings |= settings.pop("on", {})
    cuda = device.type == "cuda"
    return {
        "config": settings,
        "versions": versions()
        | ({"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if cuda else {}),  # type: ignore[no-untyped-call]
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
    }


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """The same lists and dicts with every float rounded to significant digits.

    Example:
        >>> rounded({"seconds": [0.123456789, 2]}, digits=3)
        {'seconds': [0.123, 2]}
    """
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {name: rounded(entry, digits) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry, digits) for entry in value]
    return value


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown table.

    Raises:
        ValueError: a row with more or fewer cells than the header.

    Example:
        >>> print(table(["step", "ms"], [["full", 12], ["reuse", ""]]), end="")
        | step | ms |
        |---|---|
        | full | 12 |
        | reuse |  |
    """
    lines: list[Sequence[object]] = [header, *rows]
    if uneven := next((line for line in lines if len(line) != len(header)), None):
        raise ValueError(f"{uneven} has not the {len(header)} cells of {header}")
    written = [f"| {' | '.join(map(str, line))} |\n" for line in lines]
    return "".join([written[0], "|" + "---|" * len(header) + "\n", *written[1:]])


def panels(width: float, height: float, number: int = 1, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """An empty figure of ``number`` panels side by side, in the project's style."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, number, squeeze=False, sharey=sharey).flat)
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a small PNG."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120)
    picture = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    with files.replacing(path) as file:
        picture.save(file, format="PNG", optimize=True)


def write(
    out: Path,
    numbers: dict[str, Any],
    render: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any]], Figure] | None = None,
) -> Path:
    """Write ``out`` (.json) and, made from what stands there, the table (.md) and the figure (.png)
    beside it; print the table and return its path.
    """
    from rich.console import Console

    out.parent.mkdir(parents=True, exist_ok=True)
    published = rounded(numbers)
    files.write_text(out, json.dumps(published) + "\n")
    place, text = out.with_suffix(".md"), render(published)
    files.write_text(place, text)
    if draw is not None:
        save(draw(published), out.with_suffix(".png"))
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
    return place
