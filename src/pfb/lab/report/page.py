"""From figures to one file."""

from __future__ import annotations

import base64
import io
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure

from pfb.lab.report.run import HEADINGS, ORIGIN, Run
from pfb.lab.train.paired import twins

DPI = 110


class Section(NamedTuple):
    """A title, the figure under it, and what is to be known of it."""

    title: str
    figure: Figure | None
    text: str = ""


def html(runs: list[Run], sections: list[Section]) -> str:
    """The page ``page.html.j2``: what came out in short, tables of the runs and their twins, the
    sections, and where it all comes from.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("pfb.lab.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    summaries = [run.summary for run in runs if run.summary is not None]
    compared = twins.compare(summaries)
    alone = [run for run in runs if run.summary is not None and not _has_twin(run.summary, summaries)]
    return templates.get_template("page.html.j2").render(
        headings=HEADINGS,
        rows=[run.row() for run in runs],
        twin_headings=twins.HEADINGS,
        compared=[[twins.cells(row) for row in rows] for rows in compared],
        short=[*(line for rows in compared for line in twins.verdicts(rows)), *(run.cost() for run in alone)],
        origin_headings=ORIGIN,
        origin=[run.origin() for run in runs],
        twin_note=twins.note(summaries),
        sections=[(title, figure and base64.b64encode(png(figure)).decode(), text) for title, figure, text in sections],
    )


def _has_twin(run: dict[str, Any], others: list[dict[str, Any]]) -> bool:
    pairs = (pair for other in others for pair in ((run, other), (other, run)))
    return any(twins.kind(one["config"], two["config"]) for one, two in pairs)


def png(figure: Figure) -> bytes:
    """A figure on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()
