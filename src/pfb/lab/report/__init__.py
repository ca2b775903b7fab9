"""One page on one or several runs: what was learned, what was pruned, and what the pruned samples
look like.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from pfb.lab import files
from pfb.lab.bench import speed
from pfb.lab.errors import RunError
from pfb.lab.report import figures, page
from pfb.lab.report.run import Run

STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "font.size": 10}


def write(runs: list[Path], out: Path | None = None) -> Path:
    """Write the page of some runs; the pictures of samples are those of the first pruned one.

    Args:
        runs: folders that ``pfb train`` wrote, unfinished ones are shown as far as they got; and
            ``.json`` files that ``pfb bench speed`` wrote.
        out: ``.html`` for a page in one file, ``.png`` for the figures in one picture.

    Raises:
        RunError: no runs, a folder that holds none or a damaged one, another ending, or a place
            that cannot be written.
    """
    if not runs:
        raise RunError("pfb report needs at least one run folder")
    out = out or (runs[0].parent if runs[0].suffix == ".json" else runs[0]) / "report.html"
    if out.suffix not in (".html", ".png"):
        raise RunError(f"--out must end in .html or .png (got {out})")
    loaded = [Run(folder) for folder in runs if folder.suffix != ".json"]
    measured = {file.stem: _measured(file) for file in runs if file.suffix == ".json"}
    with mpl.rc_context(STYLE):
        drawn = _draw(loaded, measured)
        content = page.png(list(drawn.values())) if out.suffix == ".png" else page.html(loaded, drawn).encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(out) as draft:
            draft.write_bytes(content)
    except OSError as error:
        raise RunError(f"--out {out} cannot be written ({error.strerror or error})") from error
    return out


def _draw(runs: list[Run], measured: dict[str, dict[str, Any]]) -> dict[str, Figure]:
    drawn = {f"Time saved ({name})": speed.draw(numbers) for name, numbers in measured.items()}
    if runs:
        drawn["Learning curves"] = figures.curves(runs)
    pruned = [run for run in runs if run.records is not None and int(run.records["seen"].sum()) > 0]
    if pruned:
        drawn["What was pruned"] = figures.pruning(pruned)
        samples = figures.samples(pruned[0])
        if samples is not None:
            drawn[f"Kept most and pruned most often, by class ({pruned[0].name})"] = samples
    return drawn


def _measured(file: Path) -> dict[str, Any]:
    try:
        numbers: dict[str, Any] = json.loads(file.read_text())
        if "steps" in numbers["results"][0]:
            return numbers
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        pass
    raise RunError(f"{file} holds no result of pfb bench speed")
