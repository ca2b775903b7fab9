"""Gather kept samples until a batch has its full size again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pfb.features.judged import are_images
from pfb.selection.nested import children, is_list, key_of, leaves, rebuilt
from pfb.selection.select import (
    SHARED,
    Declared,
    is_array,
    is_tensordict,
    kind_of_list,
    looks_like_images,
    select_parts,
)
from pfb.utils.errors import first_line


class Pool:
    """Kept parts of batches, in the order in which they came: none is lost, and none given twice.

    Args:
        declared: what the user says of places in a batch.
        lists: what the pruner has learned of lists in batches, shared with it.

    Attributes:
        size: of a full batch; that of the first batch, once there was one.
        held: samples that wait for a full batch.
    """

    def __init__(self, declared: Declared, lists: dict[str, bool] | None = None) -> None:
        self.declared = declared
        self.lists = {} if lists is None else lists
        self.size: int | None = None
        self.held = 0
        self._rest: Any = None  # a batch of as many samples as are held

    def add(self, batch: Any, kept: int, size: int) -> Iterator[Any]:
        """Take in a batch of so many kept samples, and give every batch that is now full.

        Args:
            batch: what was kept.
            kept: samples in it.
            size: samples that it had before.

        Raises:
            ValueError: it cannot be joined with what waits; the message names the place.
        """
        self.size = size if self.size is None else self.size
        if kept:
            if self.held:
                batch = joined(self._rest, self.held, batch, kept, self.declared, lists=self.lists)
            self._rest = batch
            self.held += kept
        while self.held >= self.size:
            n, batch = self.held, self._rest
            full = self._part(torch.arange(self.size), n, batch)
            self.held = n - self.size
            self._rest = self._part(torch.arange(self.size, n), n, batch) if self.held else None
            yield full

    def state_dict(self) -> dict[str, Any]:
        """What waits; references."""
        return {"size": self.size, "held": self.held, "rest": self._rest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Wait with what was saved.

        Raises:
            ValueError: not a state of what waits.
        """
        try:
            size, held, rest = state["size"], state["held"], state["rest"]
            sizes = (0 if size is None else size, held)
            if any(type(n) is not int or n < 0 for n in sizes) or (held > 0 and (rest is None or not size)):
                raise ValueError(f"{held!r} of {size!r} samples cannot be held back")
            if held > 0:
                self._part(torch.arange(held - 1), held, rest)
        except Exception as error:  # whatever a foreign batch makes a selection raise
            raise ValueError(
                f"the state of the samples held back by `fill` is damaged ({first_line(error)}): `rest` must be a "
                "batch of `held` samples"
            ) from error
        self.size, self.held, self._rest = size, held, rest

    def _part(self, indices: Tensor, n: int, batch: Any) -> Any:
        images = isinstance(batch, list) and len(batch) == n and are_images(batch)
        return select_parts(batch, indices, n, images, self.lists, self.declared)


class _CannotJoin(ValueError):
    """Names its place already."""


def joined(
    a: Any, n: int, b: Any, m: int, declared: Declared, path: str = "batch", lists: dict[str, bool] | None = None
) -> Any:
    """Two batches of n and m samples as one of n + m.

    Raises:
        ValueError: their parts do not belong together, such as texts padded to different lengths;
            the message names the place.

    Example:
        >>> two = {"x": torch.zeros(2, 1), "id": ["a", "b"]}
        >>> joined(two, 2, {"x": torch.ones(1, 1), "id": ["c"]}, 1, Declared())["id"]
        ['a', 'b', 'c']
    """
    lists = {} if lists is None else lists
    name = key_of(path)
    dim = declared.dims.get(name, 0)
    shared = name in declared.shared
    try:
        if shared or a is None or isinstance(a, SHARED) or (isinstance(a, Tensor) and a.dim() == 0):
            return _the_same(a, b, path)
        if isinstance(a, Tensor) or is_tensordict(a):
            return torch.cat([a, b], dim)
        if is_array(a):
            return a if a.ndim == 0 else sys.modules["numpy"].concatenate([a, b], dim)
        if is_list(a) and len(a) == n and len(b) == m and (path != "batch" or are_images(a)):
            rows = [x.size(0) == n for x in leaves(a) if x.dim() > 0]
            if lists.get(kind_of_list(a, path), not (rows and all(rows)) or looks_like_images(a)):
                return a + b
        inside_a, inside_b = children(a), children(b)
        if inside_a is None or inside_b is None or [p for p, _ in inside_a] != [p for p, _ in inside_b]:
            raise ValueError("it has other parts than in the batch before")
        pairs = zip(inside_a, inside_b, strict=True)
        values = [joined(x, n, y, m, declared, path + place, lists) for (place, x), (_, y) in pairs]
        return rebuilt(a, [place for place, _ in inside_a], values)
    except _CannotJoin:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise _CannotJoin(
            f"`{path}` cannot be gathered to full batches ({str(error).splitlines()[0]}). Give samples of one shape "
            "(pad to a fixed length), or leave out `fill=True`."
        ) from error


def _the_same(a: Any, b: Any, path: str) -> Any:
    equal = torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
    if not equal:
        raise _CannotJoin(
            f"`{path}` belongs to a batch as a whole and differs between batches ({a!r}, then {b!r}), so they cannot "
            "be gathered to full ones. Make it a tensor with one value per sample, or leave out `fill=True`."
        )
    return a
