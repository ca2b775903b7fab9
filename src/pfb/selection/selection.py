"""How many samples to keep, which, and the record of that decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfb.selection import select as tree

PRECISION = 10**12  # shares are held as whole parts of this, so that 0.29 of 100 is 29 and not 28


@dataclass(frozen=True)
class Selection:
    """Which samples of one forward went on.

    Attributes:
        indices: ``[K]`` int64, ascending, the kept samples.
        batch_size: the number of samples N that entered.

    Example:
        >>> import torch
        >>> selection = Selection(torch.tensor([0, 2]), batch_size=4)
        >>> selection.select(torch.arange(4))
        tensor([0, 2])
    """

    indices: Tensor
    batch_size: int

    def select(self, *trees: Any, dim: int = 0, seen: dict[str, bool] | None = None) -> Any:
        """The kept samples of each nested batch; one result for one argument, else a tuple. See
        ``Blocker.select``.
        """
        kept = tuple(
            tree.select(t, self.indices, self.batch_size, "batch" if len(trees) == 1 else f"batch {i}", dim, seen)
            for i, t in enumerate(trees)
        )
        return kept[0] if len(kept) == 1 else kept


def parts(prune: float) -> int:
    """The share as a whole number of parts of ``PRECISION``: what :func:`keep_count`
    computes with.
    """
    return round(prune * PRECISION)


def keep_count(batch_size: int, prune: float) -> int:
    """``batch_size - floor(prune * batch_size)``, but at least 2 (or the batch itself when that is
    smaller).

    The floor is meant as a person means it: 0.29 of 100 is 29, although ``int(0.29 * 100)`` is 28.
    A kept batch of one is avoided because it would silently broadcast against inputs that bypass
    the cut.

    Example:
        >>> keep_count(128, 0.4), keep_count(100, 0.29), keep_count(3, 0.9), keep_count(1, 0.9)
        (77, 71, 2, 1)
    """
    return keep_count_of_parts(batch_size, parts(prune))


def keep_count_of_parts(batch_size: int, pruned_parts: int) -> int:
    """:func:`keep_count` in whole numbers only, as a compiled forward needs it."""
    stopped = (pruned_parts * batch_size + batch_size // 2) // PRECISION  # shares are rounded to whole parts
    return max(batch_size - stopped, min(2, batch_size))


def batch_size_for(kept: int, prune: float) -> int:
    """The largest batch of which ``keep_count`` keeps ``kept``: what to load so that the deep
    layers stay full.

    Args:
        kept: samples that should go on, such as the batch size that fills the device.
        prune: share that stops, in [0, 1).

    Raises:
        ValueError: ``kept`` below 1, or a share outside [0, 1).

    Example:
        >>> batch_size_for(128, 0.4), keep_count(213, 0.4), keep_count(214, 0.4)
        (213, 128, 129)
    """
    if kept < 1 or not 0 <= prune < 1:
        raise ValueError(
            f"`kept` must be at least 1 and `prune` a share in [0, 1) (got kept={kept!r}, prune={prune!r})"
        )
    n = int(kept / (1 - prune))
    while keep_count(n, prune) > kept:
        n -= 1
    while keep_count(n + 1, prune) <= kept:
        n += 1
    return n


def keep_largest(importance_N: Tensor, k: int) -> Tensor:
    """Indices ``[k]`` (int64, ascending) of the k most important samples; NaN counts as most
    important.

    A sample with broken features is thus kept, and the trouble surfaces in the loss instead of
    vanishing.

    Example:
        >>> import torch
        >>> keep_largest(torch.tensor([0.1, 3.0, float("nan"), 2.0]), 2)
        tensor([1, 2])
    """
    return torch.topk(importance_N, k, largest=True, sorted=False).indices.sort().values
