"""A run's folder: what lies in it, who may write there, and how to go on after a fault.

======================  ===========================================================
``config.json``         all settings
``metrics.jsonl``       a line per epoch, and per ``--log-every`` steps
``checkpoint_NNNN/``    the state after the latest epoch, see :mod:`.checkpoint`
``records.pt``          what happened to each sample, see :mod:`.records`
``samples.csv``         the same as a table
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
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pfb.lab import files
from pfb.lab.errors import RunError
from pfb.lab.train import checkpoint
from pfb.lab.train.config import TrainConfig, without_folders
from pfb.lab.train.records import Records
from pfb.utils.errors import first_line

CONFIG, METRICS, SUMMARY, RECORDS, SAMPLES = "config.json", "metrics.jsonl", "summary.json", "records.pt", "samples.csv"
BEST, WEIGHTS, AVERAGE = "best.pt", "weights.pt", "ema.pt"
TENSORBOARD, LOCK = "tensorboard", ".lock"

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
        return self._read(CONFIG, lambda place: TrainConfig.from_json(place.read_text())).moved_to(self.path)

    def epochs(self) -> list[dict[str, Any]]:
        """What was logged at the end of each epoch."""
        return [line for line in self._lines() if _of_epoch(line)]

    def steps(self) -> list[dict[str, Any]]:
        """What was logged between: loss and the blocker's statistics."""
        return [line for line in self._lines() if not _of_epoch(line)]

    def summary(self) -> dict[str, Any] | None:
        """What came out, or ``None`` for a run that is not finished."""
        return (
            self._read(SUMMARY, lambda place: _json_object(place, "config", "processes"))
            if (self.path / SUMMARY).exists()
            else None
        )

    def summary_of(self, config: TrainConfig) -> dict[str, Any] | None:
        """The same, for who expects these settings.

        Raises:
            RunError: it was run with others.
        """
        if (summary := self.summary()) is not None:
            there = {**summary, "config": without_folders(summary["config"])}
            checkpoint.check_origin(self.path / SUMMARY, there, checkpoint.origin(config, summary["processes"]))
        return summary

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
        foreign = f"--out {self.path} holds files of something else; choose another folder"
        if self.path.exists() and not self.path.is_dir():
            raise RunError(foreign)
        if not self.path.exists() or {p.name for p in self.path.iterdir()} <= {LOCK, CONFIG + files.DRAFT}:
            return
        if not _is_settings(self.path / CONFIG):
            raise RunError(foreign)
        if not overwrite:
            raise RunError(
                f"--out {self.path} is not empty, it holds a run already: continue it with "
                f"--resume {shlex.quote(str(self.path))}, or pass --overwrite"
            )

    def claim(self, overwrite: bool) -> None:
        """Make the folder, if a new run may take it.

        Raises:
            RunError: as :meth:`check_free`; or it cannot be written.
        """
        try:
            self.check_free(overwrite)
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"--out {self.path} cannot be written ({error})") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other processes from writing until the block ends, or this process in whatever
        way.

        Raises:
            RunError: another process holds the folder.
            OSError: it cannot be written.
        """
        with (self.path / LOCK).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"another process trains in {self.path} at this moment; wait for its end, or choose another --out"
                ) from None
            os.register_at_fork(after_in_child=file.close)  # a loader's worker that outlives us must not hold it
            yield

    def begin(self, config: TrainConfig) -> None:
        """Remove the run that was here, and nothing else, and note the new one's settings."""
        self.check_free(config.overwrite)
        # While this is interrupted, config.json says that the folder is a run's.
        for name in (SUMMARY, RECORDS, SAMPLES, METRICS, BEST, WEIGHTS, AVERAGE):
            (self.path / name).unlink(missing_ok=True)
        for place in (*self.checkpoints(), *self.path.glob("checkpoint_*.draft"), self.path / TENSORBOARD):
            if place.exists():
                shutil.rmtree(place)
        files.write_text(self.path / CONFIG, config.to_json())

    def reopen(self, config: TrainConfig) -> None:
        """Make a finished run one that goes on with these settings."""
        (self.path / SUMMARY).unlink()
        files.write_text(self.path / CONFIG, config.to_json())

    def log(self, values: dict[str, Any]) -> None:
        """Append a line to the metrics."""
        with (self.path / METRICS).open("a") as file:
            file.write(json.dumps(values) + "\n")

    def continue_after(self, epoch: int) -> None:
        """Drop what was logged after the checkpoint that training continues from, and checkpoints
        before it.
        """
        checkpoint.drop_before(self.path, epoch)
        kept = [line for line in self._lines() if line["epoch"] + (0 if _of_epoch(line) else 1) <= epoch]
        files.write_text(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in kept))

    def write_records(self, records: Records, labels: Tensor, names: list[str] | None) -> None:
        """The samples' records, for programs and as a table."""
        self._write_tensors(RECORDS, records.state_dict())
        with files.replacing(self.path / SAMPLES) as draft:
            records.write_csv(draft, labels, names)

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
            RunError: in place of an ``OSError``: a full disk, a file that may not be written.
            KeyboardInterrupt: with that line.
        """
        try:
            yield
        except OSError as error:
            raise RunError(f"the run in {self.path} stopped: {first_line(error)}. {self._way_on()}") from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted. {self._way_on()}") from None

    def _write_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        with files.replacing(self.path / name) as draft, files.as_os_error(draft):
            torch.save({key: value.cpu() for key, value in tensors.items()}, draft)

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


def _json_object(place: Path, *names: str) -> dict[str, Any]:
    """What a file holds if it holds at least these names."""
    value = json.loads(place.read_text())
    if not (isinstance(value, dict) and value.keys() >= set(names)):
        raise ValueError(f"it lacks {', '.join(names)}")
    return value


def _json_lines(place: Path) -> list[dict[str, Any]]:
    """All lines but a last one that was cut off while it was written."""
    lines: list[dict[str, Any]] = []
    for text in place.read_text().splitlines(keepends=True):
        try:
            line = json.loads(text)
            int(line["epoch"])
        except (ValueError, KeyError, TypeError) as error:
            if not text.endswith("\n"):
                break
            raise ValueError(f"line {len(lines) + 1} is {text.strip()[:40]}") from error
        lines.append(line)
    return lines


def _tensors(place: Path) -> dict[str, Tensor]:
    records = torch.load(place, weights_only=True)
    if not (isinstance(records, dict) and records.keys() == {"seen", "kept", "log_density"}):
        raise ValueError("it holds something else")
    return records


def _is_settings(place: Path) -> bool:
    """Whether a file is the config.json of some version of pfb train."""
    try:
        return bool(_json_object(place, "data", "data_root"))
    except (OSError, ValueError):
        return False
