"""What a report draws of several runs in one: curves, and what was pruned."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pfb.lab.report.run import Run, by_settings
from pfb.lab.train.data import labels_of
from pfb.lab.train.output.records import kept_share

SHOWN_CLASSES = 20


def curves(runs: list[Run]) -> Figure:
    """A line for the runs that differ in the seed alone: their mean, and from least to most."""
    groups = by_settings(runs)
    figure = Figure(figsize=(12, 3.6 + 0.2 * (len(groups) // 4)), layout="constrained")
    loss, accuracy, share = figure.subplots(1, 3)
    for color, group in enumerate(groups):
        style: dict[str, Any] = {"color": f"C{color}", "marker": "o", "markersize": 3}
        label = group[0].label + (f", mean of {len(group)} runs" if len(group) > 1 else "")
        _curve(loss, group, "train_loss", 1, style)
        _curve(loss, group, "test_loss", 1, {**style, "linestyle": "--"})
        _curve(accuracy, group, "test_accuracy", 100, {**style, "label": label})
        _curve(share, group, "pruned_share", 100, {**style, "drawstyle": "steps-mid"})
    loss.set(title="Loss (solid: kept training samples, dashed: test)", xlabel="epoch", ylabel="cross-entropy")
    accuracy.set(title="Test accuracy", xlabel="epoch", ylabel="%")
    share.set(title="Samples not trained on", xlabel="epoch", ylabel="% of all", ylim=(-2, 100))
    for axis in (loss, accuracy, share):
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*accuracy.get_legend_handles_labels(), fontsize=7, ncols=4, loc="outside lower center")
    return figure


def _curve(axis: Axes, group: list[Run], name: str, factor: float, style: dict[str, Any]) -> None:
    of_epoch: dict[int, list[float]] = {}
    for run in group:
        for e in run.epochs:
            if name in e or "test" not in name:  # not every epoch is evaluated
                of_epoch.setdefault(e["epoch"], []).append(factor * e[name])
    epochs = sorted(of_epoch)
    axis.plot(epochs, [statistics.fmean(of_epoch[e]) for e in epochs], **style)
    if len(group) > 1:
        ends = ([end(of_epoch[e]) for e in epochs] for end in (min, max))
        axis.fill_between(epochs, *ends, color=style["color"], alpha=0.15, linewidth=0)


def pruning(runs: list[Run]) -> Figure:
    """Densities and kept shares, a row of panels per run; beside them the classes of all runs."""
    figure = Figure(figsize=(12, max(3.6, 1.2 * len(runs) + 0.8)), layout="constrained")
    grid = figure.add_gridspec(len(runs), 3)
    for row, run in enumerate(runs):
        assert run.records is not None
        style: dict[str, Any] = {"color": f"C{row}", "alpha": 0.6, "density": True}
        density, kept = (figure.add_subplot(grid[row, column]) for column in (0, 1))
        values = run.records["log_density"][run.records["log_density"].isfinite()].numpy()
        if len(values):
            density.hist(np.clip(values, *np.percentile(values, [0.5, 99.5])), bins=60, **style)
        else:
            density.text(0.5, 0.5, "no density", ha="center", va="center", transform=density.transAxes)
        share = kept_share(run.records)
        kept.hist(100 * share[share.isfinite()].numpy(), bins=np.linspace(0, 100, 41), **style)
        kept.set_title(run.label, fontsize=8, loc="left", pad=2)
        for axis, title in ((density, "Density when last seen"), (kept, "How often a sample was kept")):
            axis.set(yticks=[])
            if row == 0:
                axis.set_title(f"{title}\n", fontsize=12)
        if row == len(runs) - 1:
            density.set(xlabel="log density, nats (each run by its own)")
            kept.set(xlabel="% of its pruned batches")
    _balance(figure.add_subplot(grid[:, 2]), runs)
    return figure


def _balance(axis: Axes, runs: list[Run]) -> None:
    """How much of each class was kept, for the runs that know the first one's classes."""
    found = [(color, run, by_class) for color, run in enumerate(runs) if (by_class := kept_by_class(run))]
    if found:
        classes = list(found[0][2])
        if len(classes) > SHOWN_CLASSES:
            classes = sorted(classes, key=found[0][2].get)[:: len(classes) // SHOWN_CLASSES]  # type: ignore[arg-type]
        found = [(color, run, by_class) for color, run, by_class in found if by_class.keys() == found[0][2].keys()]
        height = 0.8 / len(found)
        for place, (color, run, by_class) in enumerate(found):
            rows = [row + height * (place - (len(found) - 1) / 2) for row in range(len(classes))]
            axis.barh(rows, [100 * by_class[name] for name in classes], height, color=f"C{color}", alpha=0.7)
            axis.axvline(100 * mean_kept(run), color=f"C{color}", linewidth=1.2, linestyle=":")
        axis.set_yticks(range(len(classes)), classes, fontsize=8)
    axis.set(title="Kept by class", xlabel="% (dotted: had it been at random)")


def mean_kept(run: Run) -> float:
    """The share of all samples in pruned batches that was kept: what random samples would have."""
    assert run.records is not None
    return float(run.records["kept"].sum() / run.records["seen"].sum())


def kept_by_class(run: Run) -> dict[str, float]:
    """The mean share in which samples of each class were kept, NaN for a class that no pruned batch
    held; empty where samples have no class or the data are gone.
    """
    assert run.records is not None
    source, share = run.source, kept_share(run.records)
    if source is None or (labels := labels_of(source.train)).shape != share.shape:
        return {}
    seen = share.isfinite()
    return {name: float(share[seen & (labels == c)].mean()) for c, name in enumerate(source.classes)}
