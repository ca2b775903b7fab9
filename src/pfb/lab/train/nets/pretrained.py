"""Published weights of a library's model, for another number of classes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from pfb.lab import files
from pfb.lab.errors import RunError
from pfb.utils.errors import first_line

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""What images are normalised by that are too large for memory, as torchvision does."""
HASHED = re.compile(r"-([0-9a-f]{8,})\.")
"""The name of a file with the first digits of its SHA-256."""

T = TypeVar("T")


def from_torchvision(model: nn.Module, name: str, classes: int) -> None:
    """Load torchvision's best weights of ``name`` into a model with another last layer, which stays
    as it was drawn.

    Raises:
        RunError: there are none, they cannot be had, or they do not fit.
    """
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    place = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    way_out = f"Put the file of {weights.url} at {place}, or leave out --pretrained"
    state = fetched(name, lambda: _published(weights.url, place), way_out)
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    strange = [key for key, value in own.items() if key not in fitting and value.dim() and len(value) != classes]
    if strange:
        raise RunError(
            f"--pretrained: the weights of {name} do not fit this input ({strange[0]} differs); leave it out"
        )
    model.load_state_dict(fitting, strict=False)


def _published(url: str, place: Path) -> dict[str, Tensor]:
    """The tensors of a file that lies at ``place`` or is downloaded to it, and has the digits of
    its hash in its name; no code in it is run.
    """
    digits = HASHED.search(place.name)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(place), None if digits is None else digits[1], progress=False)
    if digits is not None and not files.digest(place).startswith(digits[1]):
        raise ValueError(f"{place} has not the content of that name; remove it")
    state = files.read_tensors(place)
    if not (isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(f"{place} holds something else than tensors by name; remove it")
    return state


def fetched(name: str, get: Callable[[], T], way_out: str) -> T:
    """What ``get`` returns.

    Raises:
        RunError: it fails, in whatever way a network or a library can; ``way_out`` ends the line.
    """
    try:
        return get()
    except Exception as error:
        raise RunError(f"--pretrained: weights of {name} cannot be had ({first_line(error)}). {way_out}") from error


def say_normalisation(name: str, model: nn.Module) -> None:
    """Tell where a model of timm was trained on images normalised in another way than ours."""
    mean = tuple(getattr(model, "pretrained_cfg", {}).get("mean") or IMAGENET_MEAN)
    if mean != IMAGENET_MEAN:
        logger.info(
            "%s was trained on images normalised by the mean %s; here they are by %s", name, mean, IMAGENET_MEAN
        )
