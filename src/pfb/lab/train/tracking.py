"""Where the metrics go besides ``metrics.jsonl``: one of Accelerate's trackers."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from accelerate import Accelerator

from pfb.lab.errors import RunError
from pfb.lab.train.config import TrainConfig
from pfb.utils.errors import first_line

PROJECT = "pfb"


def log_with(config: TrainConfig) -> str | None:
    """What ``Accelerator(log_with=...)`` takes.

    Raises:
        RunError: its package is not installed; Accelerate would leave it out without a word.
    """
    if config.track == "none":
        return None
    if importlib.util.find_spec(config.track) is None:
        raise RunError(f"--track {config.track} needs a package that is not installed: pip install {config.track}")
    return config.track


def start(accelerator: Accelerator, config: TrainConfig) -> None:
    """Open the tracker: TensorBoard's files lie in the run's folder; the others get a run with the
    folder's name in project (experiment) ``pfb``, and all settings.

    Raises:
        RunError: it refuses, such as one that nobody is logged in to.
    """
    if config.track == "none":
        return
    if not accelerator.log_with:
        raise RunError(
            f"--track {config.track}: accelerate does not find the package; install it anew, or leave it out"
        )
    project, settings, options = "tensorboard", None, {}
    if config.track != "tensorboard":
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


def log(accelerator: Accelerator, values: dict[str, Any]) -> None:
    """One point per value, named ``epoch/...`` or ``step/...``."""
    kind = "epoch" if "train_loss" in values else "step"
    points = {f"{kind}/{name}": value for name, value in values.items() if name not in ("epoch", "step")}
    accelerator.log(points, step=int(values["step"]))
