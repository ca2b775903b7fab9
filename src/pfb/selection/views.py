"""Rows of a batch that belong together: views of one image, pairs, triplets.

Shape suffixes: N rows, V views, G groups of V rows, D feature dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_ROWS = 16  # fewer tell nothing about undeclared views
LEAST_HITS = 8  # so many by chance: once in 100,000 batches


@dataclass(frozen=True)
class Views:
    """How rows belong together; all of a group go on, or none.

    Attributes:
        count: V, rows of one group.
        interleaved: ``False``: row i, i + N / V, ... are one group, as ``torch.cat([a, b])`` builds
            them; ``True``: V rows in succession are, as ``torch.stack([a, b], 1).flatten(0, 1)``.

    Raises:
        ValueError: ``count`` is no whole number of at least 1.

    Example:
        >>> import torch
        >>> Views(2).rows(torch.tensor([0, 2]), batch_size=6)
        tensor([0, 2, 3, 5])
        >>> Views(2, interleaved=True).rows(torch.tensor([0, 2]), batch_size=6)
        tensor([0, 1, 4, 5])
    """

    count: int = 1
    interleaved: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 1:
            raise ValueError(f"`views` must be a whole number of at least 1, or pfb.Views(...) (got {self.count!r})")

    def pooled(self, features_ND: Tensor) -> Tensor:
        """The mean of each group's features, ``[G, D]``.

        Raises:
            ValueError: the rows are no whole number of groups.
        """
        if self.count == 1:
            return features_ND
        n, d = features_ND.shape
        if n % self.count:
            raise ValueError(f"a batch of {n} rows holds no whole number of groups of `views` = {self.count} rows")
        groups = n // self.count
        if self.interleaved:
            return features_ND.view(groups, self.count, d).mean(1)
        return features_ND.view(self.count, groups, d).mean(0)

    def rows(self, groups_K: Tensor, batch_size: int) -> Tensor:
        """The rows of some groups (ascending), ascending."""
        if self.count == 1:
            return groups_K
        view_V = torch.arange(self.count, device=groups_K.device)
        if self.interleaved:
            return (groups_K[:, None] * self.count + view_V).flatten()
        return (view_V[:, None] * (batch_size // self.count) + groups_K).flatten()

    def groups(self, rows_K: Tensor) -> Tensor:
        """The groups of which these are all rows, as :meth:`rows` gives them.

        Example:
            >>> import torch
            >>> Views(2).groups(torch.tensor([0, 2, 3, 5]))
            tensor([0, 2])
        """
        if self.interleaved:
            return rows_K[:: self.count] // self.count
        return rows_K[: len(rows_K) // self.count]


def undeclared(features_ND: Tensor) -> Views | None:
    """Rows that are so alike that they look like views of one sample; ``None`` if there are none.

    A row is matched with the nearest of those that would hold the next view. Without views it hits
    its own partner once in a batch, whatever the batch's size. Synchronises the device.
    """
    if len(features_ND) < LEAST_ROWS:
        return None
    x_ND = features_ND / features_ND.std(0).clamp_min(1e-12)
    # Of four views stacked, two look like two; not the other way round.
    counts = [v for v in (4, 3, 2) if len(x_ND) % v == 0]
    return next((v for v in (Views(c, near) for c in counts for near in (False, True)) if _look_alike(x_ND, v)), None)


def _look_alike(x_ND: Tensor, views: Views) -> bool:
    g = len(x_ND) // views.count
    rows_VGD = x_ND.view(g, views.count, -1).transpose(0, 1) if views.interleaved else x_ND.view(views.count, g, -1)
    return all(_partners_hit(rows_VGD[0], rows_VGD[v]) for v in {1, views.count - 1})


def _partners_hit(a_GD: Tensor, b_GD: Tensor) -> bool:
    place_G = torch.arange(len(a_GD), device=a_GD.device)
    off_G = torch.cdist(a_GD.contiguous(), b_GD.contiguous()).argmin(1) - place_G
    hits, near_misses = torch.stack([(off_G == 0).sum(), (off_G.abs() == 1).sum()]).tolist()
    # In a batch that is sorted or a stream in order, the rows beside it are as near as the partner.
    return bool(hits >= max(LEAST_HITS, len(a_GD) // 4) and near_misses < hits / 4)
