"""Locate the batch in the arguments of a forward."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pfb.selection import nested as tree


def argument_names(model: nn.Module, n: int) -> list[str]:
    """Names of a forward's first n positional arguments."""
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names + [f"argument {i}" for i in range(len(names), n)] if len(names) < n else names[:n]


def places_of(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], shared: tuple[str, ...]
) -> list[tuple[str, Any]]:
    """Name and value of each input that may hold samples: tensors, and lists and tuples.

    Looks into mappings, named tuples and dataclasses; numbers, 0-d tensors and what is ``shared``
    by all samples do not count. Whether a list holds one item per sample or several batches is not
    known yet, so it is one place.
    """
    inputs = [*zip(argument_names(model, len(args)), args, strict=True), *kwargs.items()]
    return [place for name, value in inputs for place in _places_in(name, value, shared)]


def _places_in(name: str, value: Any, shared: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    # No closure that calls itself: it would hold the batch until Python looks for cycles.
    if name in shared:
        return
    if isinstance(value, (Tensor, PackedSequence)) or tree.is_list(value):
        if not isinstance(value, Tensor) or value.dim() > 0:
            yield name, value
        return
    for place, inner in tree.children(value) or ():
        yield from _places_in(place.strip("[].'") if isinstance(value, Mapping) else name + place, inner, shared)


def holds_batches(value: Any) -> bool:
    """Whether there are tensors in it; a list without may have one item per sample (captions)."""
    return isinstance(value, PackedSequence) or len(batches_in(value)) > 0  # torch 2.11 compiles no bool(list)


def batches_in(value: Any) -> list[Tensor]:
    """All tensors in an input that may have one row per sample."""
    return [value.data] if isinstance(value, PackedSequence) else [x for x in tree.leaves(value) if x.dim() > 0]


def possible_rows(places: list[tuple[str, Any]], batch_dim: int) -> tuple[int, ...]:
    """How many samples there may be by the first input: its first dimension, or ``batch_dim``; of a
    list, its length or what its first tensor says. Empty: it does not tell.
    """
    if not places or isinstance(places[0][1], PackedSequence):
        return ()
    value = places[0][1]
    x = batches_in(value)[0]
    length = () if isinstance(value, Tensor) else (len(value),)
    return (*length, *(x.size(d) for d in sorted({0, batch_dim}) if d < x.dim()))


def check_rows(cut: str, output: Tensor, batch_dim: int, rows: tuple[int, ...], doubt: str | None) -> None:
    """The cut's samples must be the model's.

    Raises:
        ValueError: the cut's output has another number of rows, or there is doubt of the dimension
            that holds them; the message names the cut.
    """
    if doubt is not None and output.dim() > 2:
        raise ValueError(doubt)
    if batch_dim >= output.dim() or (rows and output.size(batch_dim) not in rows):
        raise ValueError(
            f"the cut {cut!r} has an output of shape {tuple(output.shape)}, whose dimension {batch_dim} is not the "
            f"model's batch of {rows[0] if rows else '?'}. If another dimension holds the samples, say which: "
            "`batch_dim=1` for [T, N, C]. If the "
            "model folds others into its batch (frames, crops, windows), cut where it does not."
        )


def doubt_of_batch_dim(cut: str, module: nn.Module) -> str | None:
    """What to ask if layers inside the cut say that their batch is not in dimension 0."""
    for name, m in module.named_modules():
        if getattr(m, "batch_first", None) is False:
            return (
                f"the cut {cut!r} holds a {type(m).__name__} with batch_first=False ({name or 'itself'}), so samples "
                "may lie in dimension 1 of its output. Say which: `batch_dim=1` for [T, N, C], `batch_dim=0` for [N, "
                "...]."
            )
    return None


def checked_dim(dim: int) -> int:
    """A dimension given by the user.

    Raises:
        ValueError: no whole number of at least 0.
    """
    if not isinstance(dim, int) or isinstance(dim, bool) or dim < 0:
        raise ValueError(f"`batch_dim` must be a whole number of at least 0 (got {dim!r})")
    return dim


def checked_names(shared: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Names given by the user.

    Raises:
        TypeError: one name, or things that are no names.
    """
    if isinstance(shared, str):
        raise TypeError(f"`shared` must be a tuple of input names: write shared=({shared!r},)")
    if not all(isinstance(name, str) for name in shared):
        raise TypeError(f"`shared` must be a tuple of input names (got {shared!r})")
    return tuple(shared)
