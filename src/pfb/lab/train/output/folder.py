"""A run's folder: what lies in it, who may write there, and how to go on after a fault.

======================  ===========================================================
``config.json``         all settings
``metrics.jsonl``       a line per epoch, and per ``--log-every`` steps
``checkpoint_NNNN/``    the state after the latest epoch, see :mod:`.checkpoint`
``records.pt``          what happened to each sample, see :mod:`.records`
``samples.csv``         the same as a table
``control.json``        which twins belong to it, see :mod:`.control`
``best.pt``             the plain model's weights after the epoch that was best on the test set
``weights.pt``          those at the end; ``ema.pt``: their moving average
``summary.json``        what came out; written last, so a run that has one is finished
``tensorboard/``        the metrics once more
``.lock``               held by the process that writes
======================  ===========================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pfb.lab import files
from pfb.lab.errors import RunError, Stopped, from_outside
from pfb.lab.train import early
from pfb.lab.train.early import CONFIG, LOCK
from pfb.lab.train.options.config import TrainConfig, without_folders
from pfb.lab.train.output import checkpoint
from pfb.lab.train.output.records import Records
from pfb.lab.train.output.tracking import TENSORBOARD
from pfb.utils.errors import first_line

METRICS, SUMMARY, RECORDS, SAMPLES = "metrics.jsonl", "summary.json", "records.pt", "samples.csv"
BEST, WEIGHTS, AVERAGE = "best.pt", "weights.pt", "ema.pt"

T = TypeVar("T")


class RunFolder:
    """The folder of one run. Reading needs no lock and works while the run goes on.

    Example:
        >>> import tempfile
        >>> folder = RunFolder(Path(tempfile.mkdtemp()) / "run")
        >>> folder.claim(overwrite=False)
        >>> with folder.locked():
        ...     folder.begin(TrainConfig(out=folder.path, epochs=7))
        ...     folder.log({"epoch": 1, "train_loss": 0.5})
        >>> folder.config().epochs, folder.epochs(), folder.summary()
        (7, [{'epoch': 1, 'train_loss': 0.5}], None)
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    # What a reader asks. Each raises RunError for a file that is damaged or may not be read.

    def config(self) -> TrainConfig:
        """The run's settings, for the place where it lies now."""
        if not (self.path / CONFIG).exists():
            raise RunError(f"{self.path}: there is no run (no {CONFIG})")
        return self._read(CONFIG, lambda place: TrainConfig.from_json(files.read_text(place))).moved_to(self.path)

    def epochs(self) -> list[dict[str, Any]]:
        """What was logged at the end of each epoch."""
        return [line for line in self._lines() if _of_epoch(line)]

    def steps(self) -> list[dict[str, Any]]:
        """What was logged between: loss and the blocker's statistics."""
        return [line for line in self._lines() if not _of_epoch(line)]

    def summary(self) -> dict[str, Any] | None:
        """What came out, or ``None`` for a run that is not finished."""
        return self._read(SUMMARY, _summary) if (self.path / SUMMARY).exists() else None

    def summary_of(self, config: TrainConfig) -> dict[str, Any] | None:
        """The same, for who expects these settings; ``None``, too, for what came out before the run
        was given more epochs.

        Raises:
            RunError: it was run with others.
        """
        if (summary := self.summary()) is None:
            return None
        there = {**summary, "config": without_folders(summary["config"])}
        before = summary["config"]["epochs"] == config.extended_from
        but = checkpoint.EXTENDED if before else ()
        checkpoint.check_origin(self.path / SUMMARY, there, checkpoint.origin(config, summary["processes"]), but)
        return None if before else summary

    def records(self) -> dict[str, Tensor] | None:
        """``[N]`` ``seen``, ``kept`` and ``log_density``, or ``None`` before the end."""
        return self._read(RECORDS, _tensors) if (self.path / RECORDS).exists() else None

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return checkpoint.finished(self.path)

    # What the process that trains does.

    def check_free(self, overwrite: bool) -> None:
        """Refuse a folder that a new run must not take.

        Raises:
            RunError: it holds files of something else, or a run that is not to be overwritten.
        """
        early.check_free(self.path, overwrite)

    def claim(self, overwrite: bool) -> None:
        """Make the folder, if a new run may take it.

        Raises:
            RunError: as :meth:`check_free`; or it cannot be written.
        """
        try:
            self.check_free(overwrite)
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise RunError(f"--out {self.path} cannot be written ({error})") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other processes from writing until the block ends, or this process in whatever
        way.

        Raises:
            RunError: another process holds the folder.
            OSError: it cannot be written.
        """
        with files.appending(self.path / LOCK) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(early.taken(self.path)) from None
            os.register_at_fork(after_in_child=file.close)  # a loader's worker that outlives us must not hold it
            yield

    def begin(self, config: TrainConfig) -> None:
        """Remove the run that was here, and nothing else, and note the new one's settings."""
        self.check_free(config.overwrite)
        # While this is interrupted, config.json says that the folder is a run's.
        for name in (SUMMARY, RECORDS, SAMPLES, METRICS, BEST, WEIGHTS, AVERAGE):
            (self.path / name).unlink(missing_ok=True)
        for place in (*self.checkpoints(), *self.path.glob("checkpoint_*.draft"), self.path / TENSORBOARD):
            files.remove(place)
        files.write_text(self.path / CONFIG, config.to_json())

    def reopen(self, config: TrainConfig) -> None:
        """Make a finished run one that goes on with these settings."""
        files.write_text(self.path / CONFIG, config.to_json())
        (self.path / SUMMARY).unlink()

    def log(self, values: dict[str, Any]) -> None:
        """Append a line to the metrics."""
        with files.appending(self.path / METRICS) as file:
            file.write(json.dumps(values) + "\n")

    def continue_after(self, epoch: int) -> None:
        """Drop what was logged after the checkpoint that training continues from, checkpoints
        before it, and what came out of fewer epochs.
        """
        (self.path / SUMMARY).unlink(missing_ok=True)
        checkpoint.drop_before(self.path, epoch)
        kept = [line for line in self._lines() if line["epoch"] + (0 if _of_epoch(line) else 1) <= epoch]
        files.write_text(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in kept))

    def write_records(self, records: Records, labels: Tensor, names: list[str] | None) -> None:
        """The samples' records, for programs and as a table."""
        self._write_tensors(RECORDS, records.state_dict())
        files.write_table(self.path / SAMPLES, records.table(labels, names))

    def write_weights(self, name: str, model: nn.Module) -> None:
        """The weights of a model as its ``load_state_dict`` takes them, whoever has built it."""
        self._write_tensors(name, model.state_dict())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """What came out; with it the run is finished."""
        files.write_text(self.path / SUMMARY, json.dumps(summary, indent=2))

    @contextlib.contextmanager
    def saying_how_to_go_on(self) -> Iterator[None]:
        """Around a run: whatever stops it from outside ends in one line that says what to do.

        Raises:
            Stopped: in place of what the system did: a full disk, a file that may not be written, a
                loader's process that was killed, memory that is short.
            KeyboardInterrupt: with that line.
        """
        try:
            yield
        except (OSError, RuntimeError, MemoryError) as error:
            if (reason := from_outside(error)) is None:
                raise
            raise Stopped(f"the run in {self.path} stopped: {reason}. {self._way_on()}", reason) from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted. {self._way_on()}") from None

    def _write_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        place = self.path / name
        with files.replacing(place) as file, files.as_os_error(place):
            torch.save({key: value.cpu() for key, value in tensors.items()}, file)

    def _way_on(self) -> str:
        if not (checkpoints := self.checkpoints()):
            return "No epoch was finished: start again, with --overwrite"
        return (
            f"All finished epochs are on disk ({checkpoints[-1].name}); continue with: "
            f"pfb train --resume {shlex.quote(str(self.path))}"
        )

    def _lines(self) -> list[dict[str, Any]]:
        return self._read(METRICS, _json_lines) if (self.path / METRICS).exists() else []

    def _read(self, name: str, parse: Callable[[Path], T]) -> T:
        try:
            return parse(self.path / name)
        except Exception as error:  # torch.load has no error of its own
            raise RunError(f"{self.path / name} is damaged or cannot be read ({first_line(error)})") from error


def _of_epoch(line: dict[str, Any]) -> bool:
    return "train_loss" in line


class _Noted(dict[str, Any]):
    """What a file holds; what it lacks is told by its name."""

    def __init__(self, values: dict[str, Any], place: Path) -> None:
        super().__init__(values)
        self.place = place

    def __missing__(self, name: str) -> Any:
        raise RunError(f"{self.place} lacks {name!r}: it is damaged, or another version wrote it")


POSITIVE = ("full_samples", "samples", "train_seconds")
NUMBERS = (*POSITIVE, "trained_samples", "test_accuracy", "train_accuracy", "compute", "peak_memory_bytes", "processes")
MEASURED = ("time_saved", "full_train_seconds", "step_seconds", "step_ratio", "saved_for_backward_bytes")
"""A number, or several by name, or nothing where it cannot be told."""


def _summary(place: Path) -> _Noted:
    value = files.read_json(place)
    config = TrainConfig.from_json(json.dumps(value["config"]))
    for name, found in value.items():
        if (
            (name in NUMBERS and not _is_number(found))
            or (name in POSITIVE and found <= 0)
            or (name in MEASURED and not (found is None or _are_numbers(found)))
            or (name in ("cut", "device") and not isinstance(found, str | None))
        ):
            raise ValueError(f"{name} is {found!r}")
        if isinstance(found, dict):
            value[name] = _Noted(found, place)
    value["config"] = json.loads(config.to_json()) | value["config"]  # older versions
    return _Noted(value, place)


def _are_numbers(value: Any) -> bool:
    return all(map(_are_numbers, value.values())) if isinstance(value, dict) else _is_number(value)


def _json_lines(place: Path) -> list[dict[str, Any]]:
    """All lines but a last one that was cut off while it was written."""
    lines: list[dict[str, Any]] = []
    for text in files.read_text(place).splitlines(keepends=True):
        try:
            line = files.parse_json(text)
            if not isinstance(line["epoch"], int) or (_of_epoch(line) and not all(map(_is_number, line.values()))):
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            if not text.endswith("\n"):
                break
            raise ValueError(f"line {len(lines) + 1} is {text.strip()[:40]}") from error
        lines.append(_Noted(line, place))
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _tensors(place: Path) -> dict[str, Tensor]:
    records = files.read_tensors(place)
    if not (isinstance(records, dict) and records.keys() == {"seen", "kept", "log_density"}):
        raise ValueError("it holds something else")
    sizes = {value.shape if isinstance(value, Tensor) else None for value in records.values()}
    if len(sizes) != 1 or not all(shape is not None and len(shape) == 1 for shape in sizes):
        raise ValueError("its tensors do not hold a number for each sample")
    return records
