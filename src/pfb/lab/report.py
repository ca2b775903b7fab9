"""One page on one or several runs: what was learned, what was pruned, and what the pruned samples
look like.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pfb.lab import files
from pfb.lab.bench import speed
from pfb.lab.errors import RunError
from pfb.lab.train.config import TrainConfig
from pfb.lab.train.data import Source, labels_of, load
from pfb.lab.train.records import kept_share

GRID_CLASSES = 10
GRID_SAMPLES = 8
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "font.size": 10}


def write(runs: list[Path], out: Path | None = None) -> Path:
    """Write the page of some runs; the pictures of samples are those of the first pruned one.

    Args:
        runs: folders that ``pfb train`` wrote, unfinished ones are shown as far as they got; and
            ``.json`` files that ``pfb bench speed`` wrote.
        out: ``.html`` for a page in one file, ``.png`` for the figures in one picture.

    Raises:
        RunError: no runs, a folder that holds none, or another ending.
    """
    if not runs:
        raise RunError("pfb report needs at least one run folder")
    out = out or (runs[0].parent if runs[0].suffix == ".json" else runs[0]) / "report.html"
    if out.suffix not in (".html", ".png"):
        raise RunError(f"--out must end in .html or .png (got {out})")
    loaded = [_Run(folder) for folder in runs if folder.suffix != ".json"]
    with mpl.rc_context(STYLE):
        figures = {f"Time saved ({file.stem})": speed.draw(_measured(file)) for file in runs if file.suffix == ".json"}
        if loaded:
            figures["Learning curves"] = _curves(loaded)
        pruned = [run for run in loaded if run.records is not None and int(run.records["seen"].sum()) > 0]
        if pruned:
            figures["What was pruned"] = _pruning(pruned)
            grid = _grid(pruned[0])
            if grid is not None:
                figures[f"Kept most and pruned most often, by class ({pruned[0].name})"] = grid
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(out) as draft:
        if out.suffix == ".png":
            draft.write_bytes(_stacked(list(figures.values())))
        else:
            draft.write_text(_page(loaded, figures))
    return out


def _measured(file: Path) -> dict[str, Any]:
    try:
        numbers: dict[str, Any] = json.loads(file.read_text())
        if "steps" in numbers["results"][0]:
            return numbers
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        pass
    raise RunError(f"{file} holds no result of pfb bench speed")


class _Run:
    """What lies in a run's folder."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file() or not (folder / "metrics.jsonl").is_file():
            raise RunError(f"{folder} holds no run of pfb train (config.json, metrics.jsonl)")
        self.name = folder.name
        self.config = TrainConfig.from_json((folder / "config.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
        self.epochs = [line for line in lines if "train_loss" in line]
        self.steps = [line for line in lines if "train_loss" not in line]
        summary, records = folder / "summary.json", folder / "records.pt"
        self.summary: dict[str, Any] | None = json.loads(summary.read_text()) if summary.is_file() else None
        self.records: dict[str, Tensor] | None = torch.load(records) if records.is_file() else None

    @functools.cached_property
    def source(self) -> Source | None:
        """The run's data, or ``None`` if it is no longer there: the curves still are."""
        try:
            return load(self.config)
        except RunError:
            return None

    @property
    def label(self) -> str:
        config = self.config
        if config.method == "full":
            return f"{self.name}: full"
        return f"{self.name}: {config.method} {config.prune:.0%}, {config.shallow}"


def _curves(runs: list[_Run]) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, accuracy, share = figure.subplots(1, 3)
    for color, run in enumerate(runs):
        epoch = [e["epoch"] for e in run.epochs]
        style: dict[str, Any] = {"color": f"C{color}", "marker": "o", "markersize": 3}
        loss.plot(epoch, [e["train_loss"] for e in run.epochs], **style, label=run.label)
        tested = [e for e in run.epochs if "test_accuracy" in e]
        loss.plot([e["epoch"] for e in tested], [e["test_loss"] for e in tested], **style, linestyle="--")
        accuracy.plot(
            [e["epoch"] for e in tested], [100 * e["test_accuracy"] for e in tested], **style, label=run.label
        )
        share.plot(
            epoch, [100 * e["pruned_share"] for e in run.epochs], **style, drawstyle="steps-mid", label=run.label
        )
    loss.set(title="Loss (solid: kept training samples, dashed: test)", xlabel="epoch", ylabel="cross-entropy")
    accuracy.set(title="Test accuracy", xlabel="epoch", ylabel="%")
    share.set(title="Samples not trained on", xlabel="epoch", ylabel="% of all", ylim=(-2, 100))
    loss.legend(fontsize=7)
    accuracy.legend(fontsize=7)
    return figure


def _pruning(runs: list[_Run]) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    density, kept, balance = figure.subplots(1, 3)
    width = 0.8 / len(runs)
    for color, run in enumerate(runs):
        assert run.records is not None
        records, style = run.records, {"color": f"C{color}", "alpha": 0.6, "label": run.label}
        values = records["log_density"][records["log_density"].isfinite()].numpy()
        if len(values):
            density.hist(np.clip(values, *np.percentile(values, [0.5, 99.5])), bins=60, density=True, **style)
        share = kept_share(records)
        seen = share.isfinite()
        kept.hist(100 * share[seen].numpy(), bins=np.linspace(0, 100, 41), density=True, **style)
        if run.source is not None and (labels := labels_of(run.source.train)).shape == share.shape:
            classes = run.source.classes
            means = [100 * float(share[seen & (labels == c)].nanmean()) for c in range(len(classes))]
            shown = np.argsort(means)[:: max(1, len(classes) // 20)] if len(classes) > 20 else np.arange(len(classes))
            balance.barh(np.arange(len(shown)) + width * color, [means[c] for c in shown], height=width, **style)
            balance.set_yticks(range(len(shown)), [classes[c] for c in shown], fontsize=8)
            balance.axvline(100 * (1 - run.config.prune), color="black", linewidth=0.8, linestyle=":")
    density.set(title="Density when last seen", xlabel="log density, nats", ylabel="samples")
    density.set_yticks([])
    kept.set(title="How often a sample was kept", xlabel="% of its pruned batches", ylabel="samples")
    kept.set_yticks([])
    balance.set(title="Kept by class", xlabel="% (dotted: average)", xlim=(0, 100))
    density.legend(fontsize=7)
    return figure


def _grid(run: _Run) -> Figure | None:
    """For each class a row: the samples kept most often on the left, those pruned most often on the
    right.
    """
    assert run.records is not None
    source, share = run.source, kept_share(run.records)
    if source is None or (labels := labels_of(source.train)).shape != share.shape:
        return None
    dataset: Any = source.train
    rows = min(len(source.classes), GRID_CLASSES)
    figure = Figure(figsize=(12, 0.72 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, 2 * GRID_SAMPLES + 1, squeeze=False)
    for c in range(rows):
        members = torch.nonzero((labels == c) & share.isfinite()).flatten()
        order = members[share[members].argsort(descending=True, stable=True)]
        shown = [order[:GRID_SAMPLES], order[-GRID_SAMPLES:].flip(0)]
        for side, indices in enumerate(shown):
            for column, index in enumerate(indices.tolist()):
                axis = axes[c, column + side * (GRID_SAMPLES + 1)]
                axis.imshow(_picture(dataset, index), cmap="gray", vmin=0, vmax=255)
                axis.set_title(f"{100 * float(share[index]):.0f}%", fontsize=6, pad=1)
        axes[c, 0].set_ylabel(source.classes[c], rotation=0, ha="right", va="center", fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        for spine in axis.spines.values():
            spine.set_visible(False)
    figure.text(0.27, 1.0, "kept most often", ha="center", va="bottom", fontsize=11)
    figure.text(0.77, 1.0, "pruned most often", ha="center", va="bottom", fontsize=11)
    return figure


def _picture(dataset: Any, index: int) -> np.ndarray[Any, Any]:
    image: Tensor = dataset[index]["input"]
    image = image[0] if image.dim() == 4 else image
    pixels = image.permute(1, 2, 0)
    return (pixels[:, :, 0] if pixels.size(2) == 1 else pixels).numpy()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def _stacked(figures: list[Figure]) -> bytes:
    """All figures below each other in one PNG."""
    from PIL import Image

    pictures = [Image.open(io.BytesIO(_png(figure))).convert("RGB") for figure in figures]
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height + 20 for p in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, ((sheet.width - picture.width) // 2, top))
        top += picture.height + 20
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _page(runs: list[_Run], figures: dict[str, Figure]) -> str:
    rows = "".join(_summary_row(run) for run in runs)
    pictures = "".join(
        f'<h2>{html.escape(title)}</h2>\n<img alt="{html.escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(_png(figure)).decode()}">\n'
        for title, figure in figures.items()
    )
    heads = (
        "run",
        "data, model",
        "method",
        "cut, wiring",
        "test accuracy, last epoch",
        "samples not trained on",
        "training time",
        "same on full data",
        "time saved",
    )
    table = f"""<table><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>
{rows}</table>
<p>Full-data time is the run's own plus, for each pruned step, the measured difference between an unpruned and a pruned
step. Densities and kept shares cover the pruned part of training.</p>
"""
    table = table if runs else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>pfb report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: #222; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; font-size: 0.85rem; }}
th, td {{ text-align: left; padding: 0.3rem 0.8rem; border-bottom: 1px solid #ddd; }}
</style></head><body>
<h1>pfb report</h1>
{table}{pictures}</body></html>
"""


def _summary_row(run: _Run) -> str:
    config, summary = run.config, run.summary
    cells = [run.name, f"{config.data}, {config.model}", config.method]
    if summary is None:
        tested = [e for e in run.epochs if "test_accuracy" in e]
        accuracy = f"{tested[-1]['test_accuracy']:.2%} so far" if tested else "not evaluated yet"
        cells += [config.shallow, accuracy, "", "", "", ""]
    else:
        full = summary["full_samples"]
        left_out, saved = full - summary["trained_samples"], summary["time_saved"]
        cells += [
            f"{summary['cut']}, {config.shallow}" if summary["cut"] else "",
            f"{summary['test_accuracy']:.2%}",
            f"{left_out:,} of {full:,} ({left_out / full:.1%})",
            f"{summary['train_seconds']:.1f} s",
            "" if saved is None else f"{summary['full_train_seconds']:.1f} s",
            "" if saved is None else f"{saved:.1%}",
        ]
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>\n"
