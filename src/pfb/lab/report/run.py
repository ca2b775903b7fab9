"""What a report shows of a run."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pfb.lab.errors import RunError
from pfb.lab.train.config import TrainConfig
from pfb.lab.train.data import Source, load

T = TypeVar("T")


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
        self.config = read_config(folder)
        self.epochs = read_epochs(folder)
        self.summary = read_summary(folder)
        self.records = read_records(folder)

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

    def row(self) -> list[str]:
        """The cells of the run in the report's table, see :data:`HEADINGS`."""
        config, summary = self.config, self.summary
        cells = [self.name, f"{config.data}, {config.model}", config.method]
        if summary is None:
            tested = [epoch for epoch in self.epochs if "test_accuracy" in epoch]
            accuracy = f"{tested[-1]['test_accuracy']:.2%} so far" if tested else "not evaluated yet"
            return [*cells, config.shallow, accuracy, "", "", "", ""]
        full = summary["full_samples"]
        left_out, saved = full - summary["trained_samples"], summary["time_saved"]
        return [
            *cells,
            f"{summary['cut']}, {config.shallow}" if summary["cut"] else "",
            f"{summary['test_accuracy']:.2%}",
            f"{left_out:,} of {full:,} ({left_out / full:.1%})",
            f"{summary['train_seconds']:.1f} s",
            "" if saved is None else f"{summary['full_train_seconds']:.1f} s",
            "" if saved is None else f"{saved:.1%}",
        ]


HEADINGS = [
    "run",
    "data, model",
    "method",
    "cut, wiring",
    "test accuracy, last epoch",
    "samples not trained on",
    "training time",
    "same on full data",
    "time saved",
]


def read_config(folder: Path) -> TrainConfig:
    for name in ("config.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise RunError(f"{folder} holds no run of pfb train (no {name})")
    return _read(folder / "config.json", lambda file: TrainConfig.from_json(file.read_text()))


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    return [line for line in _read(folder / "metrics.jsonl", _json_lines) if "train_loss" in line]


def read_summary(folder: Path) -> dict[str, Any] | None:
    file = folder / "summary.json"
    return _read(file, _summary) if file.exists() else None


def read_records(folder: Path) -> dict[str, Tensor] | None:
    file = folder / "records.pt"
    return _read(file, _records) if file.exists() else None


def _read(file: Path, parse: Callable[[Path], T]) -> T:
    try:
        return parse(file)
    except RunError:
        raise
    except Exception as error:  # torch.load has no error of its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RunError(f"{file} is damaged or cannot be read ({reason})") from error


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """All lines but a last one that was cut off while it was written."""
    text = file.read_text()
    lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            values["epoch"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} is not of a run") from error
        parsed.append(values)
    return parsed


def _summary(file: Path) -> dict[str, Any]:
    summary = json.loads(file.read_text())
    if not isinstance(summary, dict) or "full_samples" not in summary:
        raise ValueError("it is not of a run")
    return summary


def _records(file: Path) -> dict[str, Tensor]:
    records = torch.load(file, weights_only=True)
    if not isinstance(records, dict) or records.keys() != {"seen", "kept", "log_density"}:
        raise ValueError("it is not of a run")
    return records
