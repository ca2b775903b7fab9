"""From what a loader gives to what a model takes, and its labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pfb.selection import nested as tree
from pfb.utils.errors import first_line

LABELS = ("labels", "label", "targets", "target", "y")
Prepare = Callable[[Any], Any]
"""From a batch to ``(input, labels)`` or ``(input, labels, index)``."""


def split(batch: Any, model: nn.Module) -> tuple[Any, Any]:
    """Input and labels (or ``None``) of a batch: a tensor; ``(input,)`` or ``(input, labels)``; or
    a mapping, of which the model gets what its forward names, as in transformers' trainer.

    Raises:
        TypeError: anything else; the message asks for ``prepare=``.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 2)
        >>> x, y = split({"pixels": torch.ones(3, 4), "label": torch.zeros(3)}, model)
        >>> x.shape, y.shape
        (torch.Size([3, 4]), torch.Size([3]))
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2) and not isinstance(batch[0], (str, bytes)):
        return batch[0], batch[1] if len(batch) == 2 else None
    if isinstance(batch, Mapping):
        labels = next((batch[name] for name in LABELS if name in batch), None)
        parameters = inspect.signature(model.forward).parameters.values()
        named = {name: batch[name] for name in (p.name for p in parameters) if name in batch}
        if any(name not in LABELS for name in named):
            return named, labels
        others = {name: value for name, value in batch.items() if name not in LABELS}
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return others, labels
        tensors = [value for value in others.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return tensors[0], labels
    raise TypeError(
        f"cannot tell the input from the labels in {_kind(batch)}: pass `prepare=`, a function of the batch that "
        "returns (input, labels), with the input a tensor, a tuple of positional or a dict of keyword arguments"
    )


def run(model: nn.Module, x: Any) -> Any:
    """The model's output for an input: a tensor, a tuple of positional or a mapping of keyword
    arguments.
    """
    args, kwargs = arguments(x)
    return model(*args, **kwargs)


def arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An input as positional and keyword arguments."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (tuple(x) if isinstance(x, (tuple, list)) else (x,)), {}


def without_labels(x: Any) -> Any:
    """An input without the labels that it may carry."""
    return {name: value for name, value in x.items() if name not in LABELS} if isinstance(x, Mapping) else x


def try_out(model: nn.Module, x: Any) -> None:
    """Run the model once on an input.

    Raises:
        ValueError: it does not run.
    """
    try:
        run(model, moved(x, device_of(model)))
    except Exception as error:
        shapes = ", ".join(f"{tuple(leaf.shape)} {leaf.dtype}".replace("torch.", "") for leaf in tree.leaves(x))
        raise ValueError(
            f"the model does not run on the loader's first batch ({shapes}): {first_line(error)}. If it takes other "
            "arguments, pass `prepare=`, a function of the batch that returns (input, labels)"
        ) from error


def moved(batch: Any, device: torch.device) -> Any:
    """The same with its tensors on a device."""
    return tree.copied(batch, lambda x: x.to(device))


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lies; the CPU if it has none."""
    return next((x.device for x in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _kind(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a mapping of {', '.join(map(str, batch)) or 'nothing'}"
    return f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
