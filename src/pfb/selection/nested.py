"""Nested batches: walk through tensors inside tuples, lists, mappings and dataclasses, and rebuild
them with other values.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

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
            f"`{path}` is a {type(tree).__name__}, which cannot be indexed by sample. Convert it to a tensor, a list "
            "with one item per sample or a dataclass; or select it yourself by `selection.indices`."
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


def key_of(path: str) -> str:
    """The last name in a path as :func:`mapped` builds them: a key, a field or a position.

    Example:
        >>> key_of("batch[0]['image']"), key_of("batch.label"), key_of("batch[1]"), key_of("batch")
        ('image', 'label', '1', '')
    """
    found = re.search(r"(?s).*(?:\[(?:'(.*?)'|\"(.*?)\"|([^\[\]]*))\]|\.(\w+))$", path)
    return "" if found is None else next((name for name in found.groups() if name is not None), "")


def places(tree: Any, path: str = "batch") -> Iterator[tuple[str, Any]]:
    """Path and value of every node, containers before what they hold."""
    yield path, tree
    for place, value in children(tree) or ():
        yield from places(value, path + place)


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


def is_list(node: Any) -> bool:
    """A list or tuple that may hold one item per sample; a named tuple has fields."""
    return isinstance(node, (tuple, list)) and not hasattr(node, "_make")
