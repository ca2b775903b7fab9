"""What a report shows of a run."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import time
from pathlib import Path

from pfb.lab.errors import RunError, printable
from pfb.lab.train.data import Source, load
from pfb.lab.train.options.command import as_flags
from pfb.lab.train.options.config import without_folders
from pfb.lab.train.output.folder import SUMMARY, RunFolder
from pfb.lab.train.paired import twins


class Run:
    """A run as it lies in its folder, finished or not.

    Attributes:
        name: of the folder.
        config: its settings.
        epochs: the metrics of each epoch.
        summary: what came out, once it is finished.
        ended: when it was, in seconds since 1970.
        records: ``seen``, ``kept``, ``log_density`` of each sample ``[N]``, once it is finished.

    Raises:
        RunError: there is no run, or a file of it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.name = printable(folder.name)
        files = RunFolder(folder)
        self.config, self.epochs = files.config(), files.epochs()
        self.summary, self.records = files.summary(), files.records()
        self.ended = 0.0 if self.summary is None else (folder / SUMMARY).stat().st_mtime

    @functools.cached_property
    def source(self) -> Source | None:
        """The run's data without augmentation, or ``None`` if it is no longer there: the curves
        still are.
        """
        try:
            source = load(dataclasses.replace(self.config, augment=False))
        except (RunError, OSError):
            return None
        return dataclasses.replace(source, classes=[printable(name) for name in source.classes])

    @property
    def label(self) -> str:
        return f"{self.name}: {twins.described(dataclasses.asdict(self.config))}"

    def row(self) -> list[str]:
        """The cells of the run in the report's table, see :data:`HEADINGS`."""
        config, summary = self.config, self.summary
        cells = [self.name, f"{self._data}, {config.model}", config.method]
        if summary is None:
            tested = [epoch for epoch in self.epochs if "test_accuracy" in epoch]
            accuracy = f"{tested[-1]['test_accuracy']:.2%} so far" if tested else "not evaluated yet"
            return [*cells, "", accuracy, ""]
        full = summary["full_samples"]
        left_out = full - summary["trained_samples"]
        return [
            *cells,
            summary["cut"] or "",
            f"{summary['test_accuracy']:.2%}",
            f"{left_out:,} of {full:,} ({left_out / full:.1%})",
        ]

    def cost(self) -> str:
        """What a finished run saved, where no twin beside it tells more."""
        assert self.summary is not None
        share = f", {self.summary['compute']:.1%} of full training's compute" if "compute" in self.summary else ""
        line = f"{self.label}: {self.summary['test_accuracy']:.2%} test accuracy{share}"
        if (saved := self.summary["time_saved"]) is None or self.config.method == "full":
            return line
        return (
            f"{line}, {saved:.1%} of the training time saved ({self.summary['train_seconds']:.1f} s; "
            f"{self.summary['full_train_seconds']:.1f} s on full data, reckoned from pairs of a pruned and a full "
            "step). What that did to the accuracy, only a twin tells: --control short"
        )

    def origin(self) -> list[str]:
        """Where the numbers come from, see :data:`ORIGIN`."""
        settings = dataclasses.asdict(self.config) | {"data": self._data}
        changed = {
            name: settings[name] for name in self.config.changed() if name not in ("out", "overwrite", "extended_from")
        }
        command = shlex.join(["pfb", "train", *(printable(flag) for flag in as_flags(changed))])
        if self.summary is None:
            return [self.name, command, "", "", "not finished"]
        versions = self.summary.get("versions")
        known = versions.items() if isinstance(versions, dict) else ()
        return [
            self.name,
            command,
            self.summary["device"],
            ", ".join(f"{name} {version}" for name, version in known if version),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(self.ended)),
        ]

    @property
    def _data(self) -> str:
        return printable(without_folders(dataclasses.asdict(self.config))["data"])


def by_settings(runs: list[Run]) -> list[list[Run]]:
    """The runs that differ in the seed alone, together."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        decides = {k: v for k, v in dataclasses.asdict(run.config).items() if k not in (*twins.ASIDE, "seed")}
        groups.setdefault(json.dumps(decides, sort_keys=True, default=str), []).append(run)
    return list(groups.values())


HEADINGS = ["run", "data, model", "method", "cut", "test accuracy, last epoch", "samples not trained on"]
ORIGIN = ["run", "command", "device", "versions", "finished"]
