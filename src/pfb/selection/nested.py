"""One walker over nested batches, for selecting, shrinking and looking.

A batch is a tree: tensors inside tuples, lists, mappings and dataclasses. Every tensor whose first
dimension is the batch is indexed by sample, and so is a list that holds one item per sample;
scalars, numbers, strings and ``None`` are shared by all samples and pass through untouched.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import numbers
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

PLAIN = (str, bytes, numbers.Number, torch.dtype, torch.device)
SHARED = (*PLAIN, enum.Enum, Path, slice, range)
DESCEND = object()
"""What a visitor returns for a container that it wants to be walked into."""


def children(tree: Any) -> list[tuple[str, Any]] | None:
    """Name and value of each place inside a container; ``None`` for a leaf."""
    if isinstance(tree, PackedSequence):
        return None
    if isinstance(tree, Mapping):
        return [(f"[{key!r}]", value) for key, value in tree.items()]
    if isinstance(tree, (tuple, list)):
        return [(f"[{i}]", value) for i, value in enumerate(tree)]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree) if hasattr(tree, field.name)]
        return [(f".{name}", getattr(tree, name)) for name in names]
    return None


def rebuilt(tree: Any, places: list[str], values: list[Any]) -> Any:
    """A copy of a container with other values; no constructor of the user's runs again."""
    if isinstance(tree, Mapping):
        items = dict(zip(tree, values, strict=True))
        if type(tree) is dict or not isinstance(tree, MutableMapping):
            return items
        return _refilled(tree, items)
    if isinstance(tree, (tuple, list)):
        if isinstance(tree, tuple) and hasattr(tree, "_make"):
            return tree._make(values)
        return values if type(tree) is list else type(tree)(values)
    clone = copy.copy(tree)
    for place, value in zip(places, values, strict=True):
        object.__setattr__(clone, place[1:], value)
    return clone


def _refilled(tree: MutableMapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A copy of a mapping of the user's own class with other values.

    Raises:
        TypeError: its copy shares its values with it.
    """
    before = dict(tree)
    clone = copy.copy(tree)
    for name, value in getattr(clone, "__dict__", {}).items():
        if isinstance(value, dict):  # where a wrapper keeps its items: a shallow copy shares it
            object.__setattr__(clone, name, value.copy())
    for key, value in items.items():
        clone[key] = value
    if any(tree[key] is not value for key, value in before.items()):
        for key, value in before.items():
            tree[key] = value
        raise TypeError("its copy.copy() shares its values with it")
    return clone


def mapped(tree: Any, visit: Callable[[Any, str], Any], path: str = "batch") -> Any:
    """The tree with every node replaced by what ``visit(node, path)`` makes of it.

    Args:
        tree: any nested batch.
        visit: returns the replacement, or ``DESCEND`` to be asked about each value inside.
        path: what errors call the tree.

    Raises:
        TypeError: a container that cannot be copied with other values.

    Example:
        >>> mapped({"a": [1, 2]}, lambda x, path: x + 1 if isinstance(x, int) else DESCEND)
        {'a': [2, 3]}
    """
    found = visit(tree, path)
    if found is not DESCEND:
        return found
    inside = children(tree)
    if inside is None:
        raise TypeError(
            f"`{path}` is a {type(tree).__name__}, which cannot be indexed by sample. Convert it to a tensor, or "
            "index it yourself with `blocker.selection.indices`."
        )
    places = [place for place, _ in inside]
    values = [mapped(value, visit, path + place) for place, value in inside]
    try:
        return rebuilt(tree, places, values)
    except Exception as error:
        raise TypeError(
            f"`{path}` is a {type(tree).__name__} that cannot be copied with other values ({error}). Pass a plain "
            "dict or tuple of what it holds."
        ) from error


def leaves(tree: Any) -> Iterator[Tensor]:
    """All tensors in a tree, depth first."""
    if isinstance(tree, Tensor):
        yield tree
    for _, value in children(tree) or ():
        yield from leaves(value)


def copied(tree: Any, copy_tensor: Callable[[Tensor], Tensor] = lambda x: x) -> Any:
    """The same leaves in containers of their own: what is popped from them stays in the tree.

    A container that cannot be copied is left as it is.
    """
    if isinstance(tree, Tensor):
        return copy_tensor(tree)
    inside = children(tree)
    if inside is None:
        return tree
    values = [copied(value, copy_tensor) for _, value in inside]
    try:
        return rebuilt(tree, [place for place, _ in inside], values)
    except Exception:  # whatever a class of the user's raises
        return tree


def select(
    tree: Any,
    indices: Tensor,
    batch_size: int,
    path: str = "batch",
    dim: int = 0,
    seen: dict[str, bool] | None = None,
) -> Any:
    """Return ``tree`` with only the samples ``indices`` of every batched value in it.

    A list or tuple of N items that holds no batched tensor has one item per sample (images of
    different sizes, one dict of boxes per image): its kept items are returned, which synchronises
    the device.

    Args:
        tree: tensor, or tuple, list, mapping or dataclass of trees.
        indices: ``[K]`` int64, the samples to keep; nothing is touched if these are all.
        batch_size: the number of samples N that every batched tensor must have.
        path: what errors call the tree.
        dim: the batch's dimension in its tensors.
        seen: remembers from one batch to the next which lists hold one item per sample, for the
            batch that happens to be as long as a list of something else.

    Returns:
        The same structure with K of N samples. Memory format (``channels_last``) and autograd graph
        are kept.

    Raises:
        ValueError: a tensor of another size than ``batch_size``; the message names its place.
        TypeError: what cannot be indexed by sample (a NumPy array, a list with one plain value per
            sample, ...), or a list of which it cannot be told.

    Example:
        >>> import torch
        >>> mixup = torch.arange(4), torch.arange(4), 0.3
        >>> batch = {"image": torch.zeros(4, 3, 8, 8), "mixup": mixup}
        >>> kept = select(batch, torch.tensor([0, 2]), 4)
        >>> kept["image"].shape, kept["mixup"]
        (torch.Size([2, 3, 8, 8]), (tensor([0, 2]), tensor([0, 2]), 0.3))
    """
    if len(indices) == batch_size:
        return tree
    seen = {} if seen is None else seen

    def visit(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            return _select_tensor(node, indices, batch_size, path, _dim_of(node, batch_size, path, dim, seen))
        if node is None or isinstance(node, SHARED):
            return node
        if is_list(node) and _is_one_per_sample(node, batch_size, path, dim, seen):
            items = [node[i] for i in indices.tolist()]
            return items if isinstance(node, list) else tuple(items)
        return DESCEND

    return mapped(tree, visit, path)


def is_list(node: Any) -> bool:
    """A list or tuple that may hold one item per sample; a named tuple has fields."""
    return isinstance(node, (tuple, list)) and not hasattr(node, "_make")


def shrink_images(tree: Any, scale: float) -> Any:
    """The tree with every image ``[N, C, H, W]`` (floating point) averaged down to ``scale`` times
    its sides.

    Raises:
        ValueError: it holds no images.

    Example:
        >>> import torch
        >>> shrink_images((torch.ones(2, 3, 8, 8), 1), 0.5)[0].shape
        torch.Size([2, 3, 4, 4])
    """
    found = []

    def visit(node: Any, path: str) -> Any:
        if isinstance(node, Tensor) and node.dim() == 4 and node.is_floating_point():
            found.append(path)
            sides = [max(1, round(side * scale)) for side in node.shape[2:]]
            return F.interpolate(node, size=sides, mode="area")
        return DESCEND if children(node) is not None else node

    shrunk = mapped(tree, visit)
    if not found:
        raise ValueError("a `scale` below 1 needs images [N, C, H, W] among the model's inputs; leave it at 1")
    return shrunk


def _select_tensor(x: Tensor, indices: Tensor, batch_size: int, path: str, dim: int) -> Tensor:
    if x.dim() == 0:
        return x
    if x.is_nested:
        raise TypeError(f"`{path}` is a nested tensor, which cannot be indexed by sample. Pad it, or pass a list.")
    if x.dim() <= dim or x.size(dim) != batch_size:
        raise ValueError(
            f"`{path}` must have the batch of {batch_size} samples as its {_ordinal(dim)} dimension (got shape "
            f"{tuple(x.shape)}). Pass what belongs to the batch of the latest forward; make a value that all samples "
            "share a Python number or a 0-d tensor, or name it in `shared=` if it is an input of the model."
        )
    if indices.device != x.device:
        indices = indices.to(x.device)
    # index_select always writes a contiguous result: take the layout in which samples lie densely.
    if dim == 0 and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)
    if dim == 0 and x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return x.permute(0, 2, 3, 4, 1).index_select(0, indices).permute(0, 4, 1, 2, 3)
    return x.index_select(dim, indices)


def _ordinal(dim: int) -> str:
    return ("first", "second", "third")[dim] if dim < 3 else f"{dim + 1}th"


def _is_one_per_sample(node: Any, batch_size: int, path: str, dim: int, seen: dict[str, bool]) -> bool:
    """Whether a list holds one item per sample.

    Raises:
        TypeError: it is as long as the batch, and it cannot be told.
        ValueError: until now it was, and it is not as long as the batch.
    """
    kind = _kind(node, path)
    batched = [x.size(dim) == batch_size for x in leaves(node) if x.dim() > dim]
    if len(node) != batch_size:
        if seen.get(kind) and not (batched and all(batched)):
            raise ValueError(
                f"`{path}` held one item per sample until now, and has {len(node)} for {batch_size} samples. Pass the "
                "list that belongs to the batch of the latest forward."
            )
        _remember(seen, kind, False)
        return False
    if kind in seen:
        return seen[kind]
    if all(isinstance(item, PLAIN) for item in node):
        raise TypeError(
            f"`{path}` holds {batch_size} plain values for {batch_size} samples, so it is not clear whether they are "
            "one per sample. Make it a tensor, or use `blocker.selection.select_list(values)` for the kept items."
        )
    alike = len({type(item) for item in node if item is not None}) <= 1
    if batched and all(batched) and not _are_images(node):
        if not alike or any(item is None for item in node):
            return False
        raise TypeError(
            f"`{path}` holds {batch_size} items with tensors of {batch_size} rows for {batch_size} samples, so it is "
            "not clear whether it has one item per sample or items for all. Stack them into one tensor."
        )
    if any(batched) and not alike:
        return False
    _remember(seen, kind, True)
    return True


def _are_images(node: Any) -> bool:
    """Three images ``[3, H, W]`` look like three batches of three; nobody batches those."""
    return all(isinstance(x, Tensor) and x.dim() == 3 and x.is_floating_point() and len(x) == 3 for x in node)


def _kind(node: Any, path: str) -> str:
    """Place and kind of a list: two of one place but of different kinds tell nothing of each
    other.
    """
    return f"{path}: {type(node).__name__} of {', '.join(sorted({type(item).__name__ for item in node}))}"


def _dim_of(x: Tensor, batch_size: int, path: str, dim: int, seen: dict[str, bool]) -> int:
    """Where a tensor has its samples: in ``dim``, or first, as masks ``[N, T]`` beside sequences
    ``[T, N, C]`` have them.
    """
    if dim == 0 or x.dim() == 0:
        return dim
    place = f"{path}: samples first"
    here, first = x.dim() > dim and x.size(dim) == batch_size, x.size(0) == batch_size
    if here != first:
        _remember(seen, place, first)
        return 0 if first else dim
    return 0 if first and seen.get(place, x.dtype == torch.bool and x.dim() == 2) else dim


def _remember(seen: dict[str, bool], what: str, value: bool) -> None:
    """For good: the first batch that tells decides."""
    if not torch.compiler.is_compiling():
        seen.setdefault(what, value)
