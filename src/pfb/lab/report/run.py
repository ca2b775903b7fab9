"""What a report shows of a run."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from pfb.lab.errors import RunError
from pfb.lab.train import twins
from pfb.lab.train.config import without_folders
from pfb.lab.train.data import Source, load
from pfb.lab.train.folder import RunFolder


class Run:
    """A run as it lies in its folder, finished or not.

    Attributes:
        name: of the folder.
        config: its settings.
        epochs: the metrics of each epoch.
        summary: what came out, once it is finished.
        records: ``seen``, ``kept``, ``log_density`` of each sample ``[N]``, once it is finished.

    Raises:
        RunError: there is no run, or a file of it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        files = RunFolder(folder)
        self.config, self.epochs = files.config(), files.epochs()
        self.summary, self.records = files.summary(), files.records()

    @functools.cached_property
    def source(self) -> Source | None:
        """The run's data without augmentation, or ``None`` if it is no longer there: the curves
        still are.
        """
        try:
            return load(dataclasses.replace(self.config, augment=False))
        except RunError:
            return None

    @property
    def label(self) -> str:
        return f"{self.name}: {twins.described(dataclasses.asdict(self.config))}"

    def row(self) -> list[str]:
        """The cells of the run in the report's table, see :data:`HEADINGS`."""
        config, summary = self.config, self.summary
        data = without_folders(dataclasses.asdict(config))["data"]
        cells = [self.name, f"{data}, {config.model}", config.method]
        if summary is None:
            tested = [epoch for epoch in self.epochs if "test_accuracy" in epoch]
            accuracy = f"{tested[-1]['test_accuracy']:.2%} so far" if tested else "not evaluated yet"
            return [*cells, "", accuracy, "", "", "", "", ""]
        full = summary["full_samples"]
        left_out, saved = full - summary["trained_samples"], summary["time_saved"]
        return [
            *cells,
            summary["cut"] or "",
            f"{summary['test_accuracy']:.2%}",
            f"{left_out:,} of {full:,} ({left_out / full:.1%})",
            f"{summary['compute']:.1%}" if "compute" in summary else "",
            f"{summary['train_seconds']:.1f} s",
            "" if saved is None else f"{summary['full_train_seconds']:.1f} s",
            "" if saved is None else f"{saved:.1%}",
        ]


HEADINGS = [
    "run",
    "data, model",
    "method",
    "cut",
    "test accuracy, last epoch",
    "samples not trained on",
    "compute, of full training",
    "training time",
    "same on full data",
    "time saved",
]
