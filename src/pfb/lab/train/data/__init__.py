"""Data by name. Small images are decoded once and kept in memory, so that loading never hides what
pruning saves.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from pfb.lab.errors import RunError
from pfb.lab.train.batches.sampler import EpochSampler
from pfb.lab.train.data import clips, dropped, folder, generated, packaged
from pfb.lab.train.data.images import SMALL_IMAGE
from pfb.lab.train.data.source import Batch, Source, labels_of
from pfb.lab.train.options.config import TrainConfig

__all__ = ["SMALL_IMAGE", "Batch", "EpochSampler", "Source", "labels_of", "load"]

FOLDER = "imagefolder:"
SOURCES = {
    "digits": packaged.digits,
    "digit-clips": clips.digit_clips,
    "cifar10": packaged.cifar10,
    "cifar100": packaged.cifar100,
    "shapes": generated.shapes,
    "text": generated.text,
}


def load(config: TrainConfig) -> Source:
    """The data that ``--data`` names, without what ``--drop`` leaves out.

    Raises:
        RunError: unknown name, missing or empty folder, a class without images, damaged images
            (all are listed), no near-copies to drop, or a list of those of other data.
    """
    return dropped.left(_named(config), config)


def _named(config: TrainConfig) -> Source:
    if config.data.startswith(FOLDER):
        return folder.load(Path(config.data.removeprefix(FOLDER)).expanduser(), config)
    if config.data not in SOURCES:
        raise RunError(
            f"--data must be {', '.join(SOURCES)} or {FOLDER}PATH (got {config.data!r}).{_hint(config.data)}"
        )
    return SOURCES[config.data](config)


def _hint(name: str) -> str:
    if Path(name).expanduser().is_dir():
        return f" There is a folder of that name: did you mean {FOLDER}{name}?"
    near = difflib.get_close_matches(name, SOURCES, n=2)
    return f" Did you mean {' or '.join(near)}?" if near else ""
