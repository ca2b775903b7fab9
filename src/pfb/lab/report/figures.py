"""What a report draws: curves, what was pruned, and samples of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from pfb.lab.report.run import Run
from pfb.lab.train.data import labels_of
from pfb.lab.train.records import kept_share

GRID_CLASSES = 10
GRID_SAMPLES = 8
SHOWN_CLASSES = 20
HEADING = 0.3
"""Inches above the samples."""


def curves(runs: list[Run]) -> Figure:
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
    for axis in (loss, accuracy, share):
        axis.xaxis.get_major_locator().set_params(integer=True)
    loss.legend(fontsize=7)
    accuracy.legend(fontsize=7)
    return figure


def pruning(runs: list[Run]) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    density, kept, balance = figure.subplots(1, 3)
    for color, run in enumerate(runs):
        assert run.records is not None
        records, style = run.records, {"color": f"C{color}", "alpha": 0.6, "label": run.label}
        values = records["log_density"][records["log_density"].isfinite()].numpy()
        if len(values):
            density.hist(np.clip(values, *np.percentile(values, [0.5, 99.5])), bins=60, density=True, **style)
        share = kept_share(records)
        kept.hist(100 * share[share.isfinite()].numpy(), bins=np.linspace(0, 100, 41), density=True, **style)
    _balance(balance, runs)
    density.set(title="Density when last seen", xlabel="log density, nats", ylabel="samples", yticks=[])
    kept.set(title="How often a sample was kept", xlabel="% of its pruned batches", ylabel="samples", yticks=[])
    kept.legend(fontsize=7)  # not every method has a density
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
            shares = [100 * by_class[name] for name in classes]
            axis.barh(np.arange(len(classes)) + height * place, shares, height, color=f"C{color}", alpha=0.6)
            axis.axvline(100 * (1 - run.config.prune), color="black", linewidth=0.8, linestyle=":")
        axis.set_yticks(range(len(classes)), classes, fontsize=8)
    axis.set(title="Kept by class", xlabel="% (dotted: average)", xlim=(0, 100))


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


def samples(run: Run) -> Figure | None:
    """For each class a row: the samples kept most often on the left, those pruned most often on the
    right.
    """
    assert run.records is not None
    source, share = run.source, kept_share(run.records)
    if source is None or (labels := labels_of(source.train)).shape != share.shape:
        return None
    dataset: Any = source.train
    rows = min(len(source.classes), GRID_CLASSES)
    height = 0.72 * rows + HEADING
    figure = Figure(figsize=(12, height), layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - HEADING / height)))
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
    for x, heading in ((0.27, "kept most often"), (0.77, "pruned most often")):
        figure.text(x, 1, heading, ha="center", va="top", fontsize=11)
    return figure


def _picture(dataset: Any, index: int) -> np.ndarray[Any, Any]:
    image: Tensor = dataset[index]["input"]
    image = image[0] if image.dim() == 4 else image
    pixels = image.permute(1, 2, 0)
    return (pixels[:, :, 0] if pixels.size(2) == 1 else pixels).numpy()
