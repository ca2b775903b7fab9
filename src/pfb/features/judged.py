"""Which part of a batch samples are judged by: the first that a sketch knows, pictures before
others.

Shape suffixes: N samples, C channels, T time, F values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from pfb.model.inputs import LABELS
from pfb.selection.nested import children, is_list, key_of
from pfb.selection.select import is_array

SAYS_LITTLE = re.compile("mask|type_ids|position|label(?!l?ed)|target|length|index|idx|^y$")
"""Names of what lies beside a sample and does not tell it from others; not "unlabelled"."""
NAMES_CLASS = re.compile(f"^({'|'.join(LABELS)})$|(^|_)(label|class)(es)?$")
FEW_FIELDS = 8  # a longer list holds samples, not the fields of a batch


def candidates(batch: Any, path: str = "batch") -> list[tuple[str, Any]]:
    """Path and value of each part of a batch that a sketch knows: images and volumes first, then
    sequences, tokens, vectors; of one kind in the batch's order.

    Example:
        >>> batch = {"gps": torch.rand(4, 2), "frame": torch.rand(4, 3, 8, 8)}
        >>> [path for path, _ in candidates(batch)]
        ["batch['frame']", "batch['gps']"]
    """
    found = [(kind, path, value) for path, value in _known(batch, path, 0) if (kind := kind_of(value)) is not None]
    return [(path, value) for _, path, value in sorted(found, key=lambda one: one[0])]


def _known(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if SAYS_LITTLE.search(key_of(path).lower()):
        return
    if is_array(value):
        value = as_tensor(value)
    if isinstance(value, Tensor) and 0 in value.shape[1:]:
        return
    fields = depth == 0 and isinstance(value, tuple)  # what a call was given, however it looks
    if kind_of(value) is not None and not fields:
        yield path, value
        return
    if is_list(value) and (len(value) > FEW_FIELDS or (depth > 0 and _is_one_per_sample(value))):
        return
    for place, inner in children(value) or ():
        yield from _known(inner, path + place, depth + 1)


def _is_one_per_sample(items: Sequence[Any]) -> bool:
    """Whether a list inside a batch holds one item per sample: no tensors, or ragged ones."""
    lengths = {x.size(0) for x in items if isinstance(x, Tensor) and x.dim() > 0}
    return len(lengths) != 1


def kind_of(x: Any) -> int | None:
    """0 for images and volumes, 1 for sequences, 2 for tokens, 3 for vectors; ``None`` for what no
    sketch is known of.
    """
    if are_images(x):
        return 0
    if not isinstance(x, Tensor) or x.is_nested or x.is_complex() or x.dtype == torch.bool or x.dim() < 2:
        return None
    whole = not x.is_floating_point()
    return {2: 2 if whole else 3, 3: None if whole else 1, 4: 0, 5: 0}.get(x.dim())


def are_images(items: object) -> TypeGuard[Sequence[Tensor]]:
    """Whether this is a list of one image per sample, of whatever sizes, as detectors take them."""
    if not isinstance(items, (list, tuple)):
        return False
    channels = {x.size(0) if isinstance(x, Tensor) and x.dim() == 3 else 0 for x in items}
    return len(channels) == 1 and channels <= {1, 3, 4}


def as_tensor(array: Any) -> Any:
    """A NumPy array of numbers as a tensor, without a copy where that is possible; any other as it
    is.
    """
    try:
        return torch.as_tensor(array)
    except (TypeError, ValueError):
        return array


def as_classes(x: Any, n: int, floats: bool = False) -> Tensor | None:
    """The classes of n samples, int64 ``[N]``, from whole numbers or bool ``[N]`` or ``[N, 1]``;
    and, which waits for the device, from floats that are whole numbers.
    """
    x = as_tensor(x) if is_array(x) else x
    if not isinstance(x, Tensor) or x.shape not in ((n,), (n, 1)) or x.is_complex():
        return None
    if x.is_floating_point() and not (floats and bool((x == x.round()).all())):
        return None
    return x.flatten().long()


def labels_of(batch: Any, n: int, floats: bool = False) -> Tensor | None:
    """The classes of n samples, int64 ``[N]``, where a batch names or places them as usual: a key
    or field such as ``"label"`` or ``"fine_label"``, else the first such part after the input.
    """
    inside = dict(children(batch) or ())
    named = [value for place, value in inside.items() if NAMES_CLASS.search(key_of(place))]
    others = batch[1:] if not named and isinstance(batch, (tuple, list)) else ()
    found = (as_classes(value, n, floats) for value in (*named, *others))
    return next((x for x in found if x is not None), None)
