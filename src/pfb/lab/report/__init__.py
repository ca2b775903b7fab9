"""One page on one or several runs: what was learned, what that cost beside their twins, what was
pruned, and what the pruned samples look like.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
from matplotlib import font_manager

from pfb.lab import files
from pfb.lab.errors import RunError
from pfb.lab.report import figures, page, samples
from pfb.lab.report.page import Section
from pfb.lab.report.run import Run, by_settings
from pfb.lab.train import early
from pfb.lab.train.paired import control

STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "font.size": 10}
STYLE |= {"text.parse_math": False}  # a class may be named $a$
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "Microsoft YaHei", "WenQuanYi Zen Hei")
"""Letters that the first one lacks are taken from the others, where they are installed."""

PRUNED = (
    "Of several seeds the first. The density of a sample, a logarithm, tells how near others are that were seen "
    "lately: copies lie on the right. Both count the part of training in which samples were stopped."
)


def write(places: list[Path], out: Path | None = None) -> Path:
    """Write the page of some runs.

    Args:
        places: folders that ``pfb train`` wrote, unfinished ones are shown as far as they got, and
            the twins of ``--control`` come with their run; and folders that hold such.
        out: the page, ``.html``; by default ``report.html`` in the first folder.

    Raises:
        RunError: no runs, a folder that holds none or a damaged one, another ending, or a place
            that cannot be written.
    """
    if not places:
        raise RunError("pfb report needs at least one run folder")
    folders = run_folders(places)
    out = out or places[0] / "report.html"
    early.check_output("out", out, (".html",))  # before all is drawn
    runs = [Run(folder) for folder in folders]
    try:
        installed = set(font_manager.get_font_names())
        with mpl.rc_context({**STYLE, "font.family": [font for font in FONTS if font in installed]}), _without_glyphs():
            text = page.html(runs, _sections(runs))
        files.write_text(out, text)
    except OSError as error:
        raise RunError(f"--out {out} cannot be written ({error.strerror or error})") from error
    return out


def run_folders(places: list[Path]) -> list[Path]:
    """The folders of all runs that are meant: a run brings its twins, any other folder the runs
    that lie in it.

    Raises:
        RunError: there is none.
    """
    found: list[Path] = []
    for place in places:
        inside = early.folders_of_runs(place)
        plan = control.read(place) if inside == [place] else None
        found += inside if plan is None else [p for p in plan.places(place) if (p / early.CONFIG).exists()]
    return list({folder.resolve(): folder for folder in found}.values())


def _sections(runs: list[Run]) -> list[Section]:
    found = [Section("Learning curves", figures.curves(runs))]
    pruned = [run for run in runs if run.records is not None and int(run.records["seen"].sum()) > 0]
    pruned = [group[0] for group in by_settings(pruned)]
    if pruned:
        found.append(Section("What was pruned", figures.pruning(pruned), PRUNED))
    return [*found, *map(samples.section, pruned)]


@contextlib.contextmanager
def _without_glyphs() -> Iterator[None]:
    """Letters that no font has are boxes in the figures; the page itself shows them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield
