"""Checkpoints that are either whole or absent: written beside their place, then renamed into it.

A checkpoint holds the model's weights (safetensors), the state of all else as plain numbers, which
is read back without unpickling objects, and a manifest that says whose it is and what its files
must hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch import nn

from pfb.lab import files
from pfb.lab.errors import RunError
from pfb.lab.train.options.config import TrainConfig, without_folders
from pfb.utils.errors import first_line

PROGRESS = ("totals", "metrics", "best")
MANIFEST, MODEL, STATE = "manifest.json", "model.safetensors", "state.pt"
EXTENDED = ("epochs", "extended_from")
"""Settings that change when a finished run is given more epochs."""
_NAME = re.compile(r"checkpoint_\d{4,}", re.ASCII)


def save(
    accelerator: Accelerator,
    run: Path,
    epoch: int,
    model: nn.Module,
    parts: Mapping[str, Any],
    progress: dict[str, Any],
    of: dict[str, Any],
) -> Path:
    """Write the state after ``epoch`` epochs and drop older ones. All processes call it.

    Args:
        accelerator: tells which process writes.
        run: the run's folder.
        epoch: epochs that are finished.
        model: its weights.
        parts: all else with a ``state_dict()`` of tensors and plain numbers.
        progress: further plain numbers by name, each in one of :data:`PROGRESS`, which :func:`load`
            returns.
        of: whose checkpoint it is: its :func:`origin`.

    Raises:
        OSError: the disk is full or not writable; the previous checkpoint is untouched.
    """
    place = run / f"checkpoint_{epoch:04d}"
    states = {name: part.state_dict() for name, part in parts.items()}
    if accelerator.is_main_process:
        draft = run / f"{place.name}{files.DRAFT}"
        files.remove(draft)
        try:
            _write(draft, model, {"parts": states, "progress": progress}, {"epoch": epoch, **of})
            draft.rename(place)
            files.sync(run)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        drop_before(run, epoch)
    accelerator.wait_for_everyone()
    return place


def _write(draft: Path, model: nn.Module, state: dict[str, Any], about: dict[str, Any]) -> None:
    draft.mkdir()  # a new one, so there are no links in it
    with files.as_os_error(draft):
        save_model(model, str(draft / MODEL))
        with files.replacing(draft / STATE) as file:
            torch.save(state, file)
    listed = {name: files.digest(draft / name) for name in (MODEL, STATE)}
    files.write_text(draft / MANIFEST, json.dumps({**about, "files": listed}, indent=2))
    for path in (draft / MODEL, draft):
        files.sync(path)


def finished(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first; what only resembles their names is left alone."""
    return sorted((p for p in run.glob("checkpoint_*") if _NAME.fullmatch(p.name) and p.is_dir()), key=_epoch)


def drop_before(run: Path, epoch: int) -> None:
    """Remove older checkpoints, as far as that is allowed: they do no harm."""
    for old in finished(run):
        if _epoch(old) < epoch:
            with contextlib.suppress(OSError):
                files.remove(old)


def _epoch(place: Path) -> int:
    return int(place.name.removeprefix("checkpoint_"))


def load(
    run: Path, model: nn.Module, parts: Mapping[str, Any], of: dict[str, Any], extended_from: int = 0
) -> tuple[int, dict[str, Any]]:
    """Load the newest checkpoint; returns how many epochs it had finished, and its ``progress``.

    Arguments as for :func:`save`; a checkpoint of ``extended_from`` epochs was the end of the run
    that was then given more: the learning rate is not taken from it.

    Raises:
        RunError: there is none, a file is missing or damaged, or it belongs to another run.
    """
    checkpoints = finished(run)
    if not checkpoints:
        raise RunError(f"{run} holds no checkpoint: no epoch was finished. Start again with --overwrite")
    place = checkpoints[-1]
    manifest = verified(place)
    extends = manifest["epoch"] == extended_from > 0
    check_origin(place, manifest, of, EXTENDED if extends else ())
    try:
        load_model(model, place / MODEL)
        state = files.read_tensors(place / STATE)
        for name, part in parts.items():
            saved = state["parts"].pop(name)
            if not (extends and name == "lr_schedule"):
                part.load_state_dict(saved)
        if state["parts"]:
            raise KeyError(*state["parts"])
        progress: dict[str, Any] = state["progress"]
        if not all(isinstance(x, (int, float)) for name in PROGRESS for x in progress[name].values()):
            raise TypeError("its progress is in no numbers")
        return manifest["epoch"], progress
    except Exception as error:  # whatever a foreign state makes a library raise
        raise RunError(f"{place} does not fit this run, or another version wrote it ({first_line(error)})") from error


def verified(place: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files all have the content that was written.

    Raises:
        RunError: a file is missing, cannot be read, or is not what the manifest says.
    """
    way_out = f"Remove {place} to continue from an older one, or start again with --overwrite"
    try:
        manifest: dict[str, Any] = files.read_json(place / MANIFEST)
        listed = {name: manifest["files"][name] for name in (MODEL, STATE)}
        if manifest["epoch"] != _epoch(place):
            raise ValueError(f"it is of epoch {manifest['epoch']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{place / MANIFEST} is missing or damaged ({first_line(error)}). {way_out}") from error
    for path, digest in ((place / name, digest) for name, digest in listed.items()):
        if not path.exists():
            raise RunError(f"{path} is missing. {way_out}")
        try:
            intact = files.digest(path) == digest
        except OSError as error:
            raise RunError(f"{path} cannot be read ({error}). {way_out}") from error
        if not intact:
            raise RunError(f"{path} is damaged. {way_out}")
    return manifest


def origin(config: TrainConfig, processes: int) -> dict[str, Any]:
    """What all parts of a run share, wherever its folder and its data lie."""
    return {"config": without_folders(json.loads(config.to_json())), "processes": processes}


def check_origin(place: Path, found: dict[str, Any], of: dict[str, Any], but: tuple[str, ...] = ()) -> None:
    """Refuse what another run has written.

    Args:
        place: the checkpoint or file.
        found: its ``config`` and number of ``processes``.
        of: those of this run.
        but: settings that may differ.

    Raises:
        RunError: they differ; it names the first setting that does.
    """
    there, here = found.get("config"), of["config"]
    if not isinstance(there, dict):
        raise RunError(f"{place} does not say of which run it is; another version wrote it")
    there = {f.name: f.default for f in dataclasses.fields(TrainConfig) if f.name in here} | there  # older versions
    for name in sorted((there.keys() | here.keys()) - set(but)):
        if there.get(name) != here.get(name):
            raise RunError(
                f"{place} belongs to other settings: --{name.replace('_', '-')} is {there.get(name)} there and "
                f"{here.get(name)} in this run's config.json"
            )
    if (processes := found.get("processes")) != of["processes"]:
        launch = "" if processes == 1 else f"accelerate launch --multi_gpu --num_processes {processes} -m "
        raise RunError(
            f"{place} needs as many processes as wrote it, {processes} (got {of['processes']}): "
            f"{launch}pfb train --resume ..."
        )
