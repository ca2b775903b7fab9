"""Published weights of a library's model, for another number of classes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from pfb.lab.errors import RunError
from pfb.utils.errors import first_line

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""What images are normalised by that are too large for memory, as torchvision does."""

T = TypeVar("T")


def from_torchvision(model: nn.Module, name: str, classes: int) -> None:
    """Load torchvision's best weights of ``name`` into a model with another last layer, which stays
    as it was drawn.

    Raises:
        RunError: there are none, they cannot be had, or they do not fit.
    """
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    place = f"{torch.hub.get_dir()}/checkpoints/{weights.url.rpartition('/')[2]}"
    way_out = f"Put the file of {weights.url} at {place}, or leave out --pretrained"
    state = fetched(name, lambda: weights.get_state_dict(progress=False, check_hash=True), way_out)
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    strange = [key for key, value in own.items() if key not in fitting and value.dim() and len(value) != classes]
    if strange:
        raise RunError(
            f"--pretrained: the weights of {name} do not fit this input ({strange[0]} differs); leave it out"
        )
    model.load_state_dict(fitting, strict=False)


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
