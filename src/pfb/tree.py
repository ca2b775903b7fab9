"""Select the kept samples in any nested batch.

A batch is a tree: tensors inside tuples, lists, dicts and dataclasses. Every tensor whose first
dimension is the batch is indexed; scalars, numbers, strings and ``None`` are shared by all samples
and pass through untouched.
"""

from __future__ import annotations

import copy
import dataclasses
import numbers
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def select(tree: Any, indices: Tensor, batch_size: int, path: str = "batch") -> Any:
    """Return ``tree`` with only the samples ``indices`` of every batched tensor in it.

    Args:
        tree: tensor, or tuple, list, mapping or dataclass of trees; the first dimension of its
            tensors is the batch.
        indices: ``[K]`` int64, the samples to keep.
        batch_size: the number of samples N that every batched tensor must have.
        path: what errors call the tree.

    Returns:
        The same structure with tensors of K rows. Memory format (``channels_last``) and autograd
        graph are kept.

    Raises:
        ValueError: a tensor has another first dimension than ``batch_size``; the message names its
            place.
        TypeError: a leaf that cannot be indexed by sample (a NumPy array, a list with one plain
            value per sample, ...).

    Example:
        >>> import torch
        >>> mixup = torch.arange(4), torch.arange(4), 0.3
        >>> batch = {"image": torch.zeros(4, 3, 8, 8), "mixup": mixup}
        >>> kept = select(batch, torch.tensor([0, 2]), 4)
        >>> kept["image"].shape, kept["mixup"]
        (torch.Size([2, 3, 8, 8]), (tensor([0, 2]), tensor([0, 2]), 0.3))
    """
    if isinstance(tree, Tensor):
        return _select_tensor(tree, indices, batch_size, path)
    if tree is None or isinstance(tree, (str, bytes, numbers.Number, torch.dtype, torch.device)):
        return tree
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree)}
        return dataclasses.replace(
            tree, **{k: select(v, indices, batch_size, f"{path}.{k}") for k, v in fields.items()}
        )
    if isinstance(tree, Mapping):
        items = {k: select(v, indices, batch_size, f"{path}[{k!r}]") for k, v in tree.items()}
        return items if type(tree) is dict else _rebuild_mapping(tree, items)
    if isinstance(tree, (tuple, list)):
        _refuse_one_value_per_sample(tree, batch_size, path)
        values = [select(v, indices, batch_size, f"{path}[{i}]") for i, v in enumerate(tree)]
        if isinstance(tree, tuple) and hasattr(tree, "_fields"):
            return type(tree)(*values)
        return values if type(tree) is list else type(tree)(values)
    raise TypeError(
        f"`{path}` is a {type(tree).__name__}, which cannot be indexed by sample. Convert it to a tensor, "
        "or index it yourself with `blocker.selection.indices`."
    )


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

    def shrink(x: Any) -> Any:
        if isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point():
            found.append(x)
            sides = [max(1, round(side * scale)) for side in x.shape[2:]]
            return F.interpolate(x, size=sides, mode="area")
        if isinstance(x, (tuple, list)) and not hasattr(x, "_fields"):
            return type(x)(shrink(v) for v in x)
        return {k: shrink(v) for k, v in x.items()} if type(x) is dict else x

    shrunk = shrink(tree)
    if not found:
        raise ValueError("`scoring_scale` below 1 needs images [N, C, H, W] among the model's inputs; leave it at 1")
    return shrunk


def _select_tensor(x: Tensor, indices: Tensor, batch_size: int, path: str) -> Tensor:
    if x.dim() == 0:
        return x
    if x.size(0) != batch_size:
        raise ValueError(
            f"`{path}` must have the batch of {batch_size} samples as its first dimension (got shape "
            f"{tuple(x.shape)}). Pass what belongs to the batch of the latest forward; make a value that all samples "
            "share a Python number or a 0-d tensor, or name it in `shared=` if it is an input of the model."
        )
    if indices.device != x.device:
        indices = indices.to(x.device)
    # index_select always writes a contiguous result: go through the layout in which the samples lie
    # densely.
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)
    if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return x.permute(0, 2, 3, 4, 1).index_select(0, indices).permute(0, 4, 1, 2, 3)
    return x.index_select(0, indices)


def _rebuild_mapping(tree: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if not isinstance(tree, MutableMapping):
        return items
    clone = copy.copy(tree)
    for key, value in items.items():
        clone[key] = value
    return clone


def _refuse_one_value_per_sample(values: tuple[Any, ...] | list[Any], batch_size: int, path: str) -> None:
    """A list of N plain values is most likely one per sample: passing it on whole would misalign it
    silently.
    """
    plain = (str, bytes, numbers.Number)
    if len(values) == batch_size > 1 and all(isinstance(v, plain) for v in values):
        raise TypeError(
            f"`{path}` holds {batch_size} plain values for {batch_size} samples, so it is not clear whether they are "
            "one per sample. Make it a tensor, or use `blocker.selection.select_list(values)` to take the kept items."
        )
