"""Where the metrics go besides ``metrics.jsonl``: one of Accelerate's trackers."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pfb.lab import files
from pfb.lab.errors import RunError
from pfb.lab.train import early
from pfb.lab.train.options.config import TrainConfig
from pfb.utils.errors import first_line

PROJECT, TENSORBOARD = "pfb", "tensorboard"


def log_with(config: TrainConfig) -> str | None:
    """What ``Accelerator(log_with=...)`` takes.

    Raises:
        RunError: its package is not installed.
    """
    early.check_tracker(config.track)
    return None if config.track == "none" else config.track


def start(accelerator: Accelerator, config: TrainConfig) -> None:
    """Open the tracker: TensorBoard's files lie in the run's folder; the others get a run with the
    folder's name in project (experiment) ``pfb``, and all settings.

    Raises:
        RunError: it refuses, such as one that nobody is logged in to.
        OSError: the folder of TensorBoard's files is a link, or cannot be written.
    """
    if config.track == "none":
        return
    if not accelerator.log_with:
        raise RunError(
            f"--track {config.track}: accelerate does not find the package; install it anew, or leave it out"
        )
    project, settings, options = TENSORBOARD, None, {}
    if config.track == TENSORBOARD:
        _check_folder(config.out / TENSORBOARD)
    else:
        project, settings = PROJECT, json.loads(config.to_json())
        options = {"wandb": {"name": config.out.name, "dir": str(config.out)}, "mlflow": {"run_name": config.out.name}}
    try:
        accelerator.init_trackers(project, settings, options)
    except OSError:
        raise
    except Exception as error:  # each service has its own
        raise RunError(
            f"--track {config.track} could not start ({first_line(error)}); see to it, or leave it out"
        ) from error


def _check_folder(place: Path) -> None:
    if place.is_symlink():
        raise files.linked(place)
    place.mkdir(exist_ok=True)
    if not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, "Permission denied", str(place))


def log(accelerator: Accelerator, values: dict[str, Any]) -> None:
    """One point per value, named ``epoch/...`` or ``step/...``."""
    kind = "epoch" if "train_loss" in values else "step"
    points = {f"{kind}/{name}": value for name, value in values.items() if name not in ("epoch", "step")}
    accelerator.log(points, step=int(values["step"]))
