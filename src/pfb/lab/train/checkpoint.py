"""Checkpoints that are either whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pfb.lab import files
from pfb.lab.errors import RunError

MANIFEST = "manifest.json"


def save(accelerator: Accelerator, run: Path, epoch: int, extra: dict[str, Any]) -> Path:
    """Write the state after ``epoch`` epochs and drop older ones. All processes call it.

    Raises:
        RunError: the disk is full or not writable; the previous checkpoint is untouched.
    """
    place = run / f"checkpoint_{epoch:04d}"
    draft = run / f"{place.name}.draft"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(draft, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(draft))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            listed = {p.relative_to(draft).as_posix(): files.digest(p) for p in sorted(draft.rglob("*")) if p.is_file()}
            files.write_text(draft / MANIFEST, json.dumps({"epoch": epoch, "files": listed, **extra}, indent=2))
            shutil.rmtree(place, ignore_errors=True)
            draft.rename(place)
            for old in finished(run)[:-1]:
                shutil.rmtree(old)
    except Exception as error:  # torch and safetensors report a full disk each by an error of their own
        shutil.rmtree(draft, ignore_errors=True)
        previous = finished(run)
        kept = f"{previous[-1]} is intact" if previous else "no earlier checkpoint exists"
        raise RunError(
            f"the checkpoint after epoch {epoch} could not be written to {run} ({error}); {kept}. Free space, then "
            f"continue with: pfb train --resume {run}"
        ) from error
    accelerator.wait_for_everyone()
    return place


def finished(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(p for p in run.glob("checkpoint_*") if p.is_dir() and p.suffix != ".draft")


def load_latest(accelerator: Accelerator, run: Path) -> dict[str, Any]:
    """Load the newest checkpoint into what the accelerator holds; returns its manifest.

    Raises:
        RunError: there is none, a file is missing or damaged, or it belongs to another model.
    """
    checkpoints = finished(run)
    if not checkpoints:
        raise RunError(f"{run} holds no checkpoint: no epoch was finished. Start again with --overwrite")
    place = checkpoints[-1]
    manifest = verified(place)
    try:
        accelerator.load_state(str(place))
    except Exception as error:
        raise RunError(f"{place} does not fit this run, or another version wrote it ({error})") from error
    return manifest


def verified(place: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files all have the content that was written."""
    way_out = f"Remove {place} to continue from an older one, or start again with --overwrite"
    try:
        manifest: dict[str, Any] = json.loads((place / MANIFEST).read_text())
        listed = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{place / MANIFEST} is missing or damaged ({error}). {way_out}") from error
    for name, digest in listed.items():
        path = place / name
        if not path.is_file() or files.digest(path) != digest:
            raise RunError(f"{path} is {'damaged' if path.is_file() else 'missing'}. {way_out}")
    return manifest
