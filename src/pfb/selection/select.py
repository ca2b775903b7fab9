"""Keep some samples of a nested batch.

Every tensor or array whose first dimension is the batch is indexed by sample, and so is a list that
holds one item per sample; scalars, strings and ``None`` are shared by all samples and pass through
untouched. What cannot be told is refused, with its place in the batch and the way out.
"""

from __future__ import annotations

import enum
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfb.selection.nested import DESCEND, children, is_list, key_of, leaves, mapped

PLAIN = (str, bytes, numbers.Number, torch.dtype, torch.device)
SHARED = (*PLAIN, enum.Enum, Path, slice, range)
FEW = 4  # plain values in a list: sizes, means per channel; of longer ones a batch's length is no accident


@dataclass(frozen=True)
class Declared:
    """What the user says of places of a batch that cannot be told by looking at them.

    Names are keys, fields or positions (``"position_ids"``, ``"1"``), the innermost if they are
    nested.

    Attributes:
        shared: belong to the batch as a whole, and pass through untouched.
        items: hold one item or row per sample, whatever they look like.
        dims: where tensors have their samples that do not have them first, such as
            ``{"position_ids": 1}`` for ``[3, N, T]``.
    """

    shared: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    dims: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, shared: Any = (), items: Any = (), dims: Any = None) -> Declared:
        """Checked, with positions as texts.

        Raises:
            TypeError: no names, or no mapping from names to whole numbers.
        """
        dims = {} if dims is None else dims
        if not isinstance(dims, Mapping) or not all(type(dim) is int and dim >= 0 for dim in dims.values()):
            raise TypeError(f'`dims` must map names to dimensions, such as {{"position_ids": 1}} (got {dims!r})')
        return cls(_names("shared", shared), _names("items", items), {str(name): dim for name, dim in dims.items()})

    @property
    def names(self) -> set[str]:
        return {*self.shared, *self.items, *self.dims}


def _names(argument: str, given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, (str, int)) and not isinstance(given, bool) else given
    if not isinstance(names, (tuple, list, set)) or not all(type(name) in (str, int) for name in names):
        raise TypeError(f"`{argument}` must be names of places in the batch: keys, fields or positions (got {given!r})")
    return tuple(map(str, names))


def select(
    tree: Any,
    indices: Tensor,
    batch_size: int,
    path: str = "batch",
    dim: int = 0,
    seen: dict[str, bool] | None = None,
    declared: Declared | None = None,
) -> Any:
    """Return ``tree`` with only the samples ``indices`` of every batched value in it.

    A list or tuple of N items that holds no batched tensor has one item per sample (captions,
    images of different sizes, one dict of boxes per image): its kept items are returned. That, and
    a NumPy array, waits for the device if the indices lie on one.

    Args:
        tree: tensor or array, or tuple, list, mapping, dataclass or TensorDict of trees.
        indices: ``[K]`` int64, the samples to keep; nothing is touched if these are all.
        batch_size: the number of samples N that every batched value must have.
        path: what errors call the tree.
        dim: the batch's dimension in its tensors.
        seen: remembers from one batch to the next which lists hold one item per sample, for the
            batch that happens to be as long as a list of something else.
        declared: what the user says of places that cannot be told.

    Returns:
        The same structure with K of N samples. Memory format (``channels_last``) and autograd graph
        are kept.

    Raises:
        ValueError: a tensor or array of another size than ``batch_size``; the message names its
            place.
        TypeError: what cannot be indexed by sample, or a list of which it cannot be told.

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
    given = Declared() if declared is None else declared

    def visit(node: Any, path: str) -> Any:
        name = "" if declared is None else key_of(path)  # older compilers know no regular expressions
        if name in given.shared or node is None or isinstance(node, SHARED) or (is_array(node) and node.ndim == 0):
            return node
        if isinstance(node, Tensor):
            where = given.dims[name] if name in given.dims else _dim_of(node, batch_size, path, dim, seen)
            return _select_tensor(node, indices, batch_size, path, where, declared is not None)
        if is_array(node):
            where = given.dims.get(name, 0)
            _check_size(node, batch_size, path, where, declared is not None)
            return node.take(indices.cpu().numpy(), axis=where)
        if is_tensordict(node):
            _check_size(node, batch_size, path, 0, declared is not None)
            return node[indices if node.device is None else indices.to(node.device)]
        if is_list(node) and is_one_per_sample(node, batch_size, path, dim, seen, name in given.items, given):
            items = [node[i] for i in indices.tolist()]
            return items if isinstance(node, list) else tuple(items)
        return DESCEND

    return mapped(tree, visit, path)


def select_parts(
    batch: Any, indices: Tensor, batch_size: int, one_per_sample: bool, seen: dict[str, bool], declared: Declared
) -> Any:
    """:func:`select` from a whole batch: its outermost tuple or list holds parts such as inputs and
    labels, however many, unless it is said to have one item per sample.
    """
    if one_per_sample or not is_list(batch) or len(indices) == batch_size:
        return select(batch, indices, batch_size, "batch", 0, seen, declared)
    parts = [
        select(value, indices, batch_size, f"batch{place}", 0, seen, declared) for place, value in children(batch) or ()
    ]
    return parts if isinstance(batch, list) else tuple(parts)


def is_array(node: Any) -> bool:
    """Whether this is a NumPy array; NumPy need not be there."""
    return type(node).__module__.partition(".")[0] == "numpy" and hasattr(node, "ndim") and hasattr(node, "take")


def is_tensordict(node: Any) -> bool:
    """Whether this is a TensorDict, which is indexed as a whole; tensordict need not be there."""
    return isinstance(getattr(node, "batch_size", None), torch.Size) and hasattr(node, "__getitem__")


def _check_size(x: Any, batch_size: int, path: str, dim: int, can_declare: bool) -> None:
    if len(x.shape) > dim and x.shape[dim] == batch_size:
        return
    raise ValueError(
        f"`{path}` must have the batch of {batch_size} samples as its {_ordinal(dim)} dimension (got shape "
        f"{tuple(x.shape)}). {_ways_out(x, batch_size, key_of(path), can_declare)}"
    )


def _ways_out(x: Any, batch_size: int, name: str, can_declare: bool) -> str:
    if not can_declare:
        return (
            "Pass what belongs to the batch of the latest forward; make a value that all samples share a Python "
            "number or a 0-d tensor."
        )
    rows, where = x.shape[0] if len(x.shape) else 0, [i for i, n in enumerate(x.shape) if n == batch_size]
    ways = [f"all samples share it, name it: `shared=({name!r},)`"]
    ways += [f"its samples are its {_ordinal(i)} dimension, say so: `dims={{{name!r}: {i}}}`" for i in where[:1]]
    if rows and rows % batch_size == 0:
        ways.append(f"it has {rows // batch_size} rows of each sample, reshape it to [{batch_size}, ...]")
    elif rows > FEW and batch_size % rows == 0:
        ways.append(f"the batch has {batch_size // rows} rows of each of {rows} samples, reshape it to [{rows}, ...]")
    elif not where:
        ways.append("it is a flat list of rows of all samples, make it a list with one tensor per sample")
    return f"If {'; if '.join(ways)}."


def _select_tensor(x: Tensor, indices: Tensor, batch_size: int, path: str, dim: int, can_declare: bool) -> Tensor:
    if x.dim() == 0:
        return x
    if x.is_nested:
        raise TypeError(f"`{path}` is a nested tensor, which cannot be indexed by sample. Pad it, or pass a list.")
    _check_size(x, batch_size, path, dim, can_declare)
    indices = indices.to(x.device)
    # index_select always writes a contiguous result: take the layout in which samples lie densely.
    if dim == 0 and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)
    if dim == 0 and x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return x.permute(0, 2, 3, 4, 1).index_select(0, indices).permute(0, 4, 1, 2, 3)
    return x.index_select(dim, indices)


def _ordinal(dim: int) -> str:
    return ("first", "second", "third")[dim] if dim < 3 else f"{dim + 1}th"


def is_one_per_sample(
    node: Any, batch_size: int, path: str, dim: int, seen: dict[str, bool], said: bool, given: Declared
) -> bool:
    """Whether a list holds one item per sample.

    Raises:
        TypeError: it is as long as the batch, and it cannot be told.
        ValueError: until now it was, or is said to, and it is not as long as the batch.
    """
    kind = kind_of_list(node, path)
    batched = [x.size(dim) == batch_size for x in leaves(node) if x.dim() > dim]
    if len(node) != batch_size:
        if said or (seen.get(kind) and not (batched and all(batched))):
            raise ValueError(
                f"`{path}` {'must hold' if said else 'held'} one item per sample{'' if said else ' until now'}, and "
                f"has {len(node)} for {batch_size} samples. Pass the list that belongs to this batch."
            )
        _check_of_all(node, batch_size, path, kind, seen)
        _remember(seen, kind, False)
        return False
    if said or kind in seen:
        return said or seen[kind]
    if given.names and any(key_of(path + place) in given.names for place, _ in children(node) or ()):
        return False  # the user speaks of places inside
    if all(isinstance(item, PLAIN) for item in node) and batch_size <= FEW:
        raise TypeError(
            f"`{path}` holds {batch_size} plain values for {batch_size} samples, so it is not clear whether they are "
            f"one per sample. Make it a tensor; or, with a BatchPruner, name it in `items=` or `shared=`."
        )
    alike = len({type(item) for item in node if item is not None}) <= 1
    if batched and all(batched) and not looks_like_images(node):
        if not alike or any(item is None for item in node):
            return False
        raise TypeError(
            f"`{path}` holds {batch_size} items with tensors of {batch_size} rows for {batch_size} samples, so it is "
            "not clear whether it has one item per sample or items for all. Stack them into one tensor."
        )
    if all(is_list(x) and len(x) == batch_size for x in node):
        raise TypeError(
            f"`{path}` holds {batch_size} lists of {batch_size} values for {batch_size} samples, so it is not clear "
            "which go with a sample. Make it a tensor; or, with a BatchPruner, name it in `items=` or `shared=`."
        )
    if any(batched) and not alike:
        return False
    _remember(seen, kind, True)
    return True


def _check_of_all(node: Any, batch_size: int, path: str, kind: str, seen: dict[str, bool]) -> None:
    """A list without tensors that is not as long as the batch belongs to all samples, unless it is
    a flat one of several values of each: then it is as long as several batches, or its length
    varies.

    Raises:
        TypeError: it is one of these.
    """
    plain = all(isinstance(item, (*PLAIN, Mapping, tuple, list)) for item in node)
    if len(node) <= FEW or not plain or next(leaves(node), None) is not None:
        return
    k, rest = divmod(len(node), batch_size)
    of_length = f"{kind}, in all "
    lengths = [int(key.removeprefix(of_length)) for key in seen if key.startswith(of_length)]
    flat = kind not in seen and not rest and not any(is_list(item) and len(item) == batch_size for item in node)
    if flat or len(node) not in (lengths or [len(node)]):
        why = f"they are {k} of each sample" if flat else f"they are some of each (before, it held {lengths[0]})"
        raise TypeError(
            f"`{path}` holds {len(node)} values for {batch_size} samples, so it is not clear whether {why}. If so, "
            "give a list with one list per sample; if all samples share them, name it in `shared=` of a BatchPruner, "
            "or do not select from it."
        )
    _remember(seen, f"{of_length}{len(node)}", True)


def looks_like_images(node: Any) -> bool:
    """Three images ``[3, H, W]`` look like three batches of three; nobody batches those."""
    return all(isinstance(x, Tensor) and x.dim() == 3 and len(x) in (1, 3, 4) for x in node)


def kind_of_list(node: Any, path: str) -> str:
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
