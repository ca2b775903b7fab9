"""Which pairs of near-copies were found, beside those that there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import Tensor

ALONE = -1
"""The scene of a sample that has no copy."""


def of_groups(groups: Iterable[Sequence[int]], scene_N: Tensor) -> dict[str, float]:
    """Precision and recall of the pairs that groups make.

    Args:
        groups: indices; no sample is in two.
        scene_N: which scene each sample shows, or ``ALONE``.

    Example:
        >>> import torch
        >>> of_groups([(0, 1, 3)], torch.tensor([5, 5, 5, -1]))
        {'pairs': 3, 'precision': 0.3333333333333333, 'recall': 0.3333333333333333}
    """
    scenes = scene_N.tolist()
    found = right = 0
    for group in groups:
        found += _pairs(len(group))
        right += sum(_pairs(n) for scene, n in Counter(scenes[i] for i in group).items() if scene != ALONE)
    return scores(found, right, scenes)


def of_pairs(pairs: Iterable[tuple[int, int]], scene_N: Tensor) -> dict[str, float]:
    """The same of pairs in any order.

    Example:
        >>> import torch
        >>> of_pairs([(0, 1), (1, 0), (0, 3)], torch.tensor([5, 5, 5, -1]))
        {'pairs': 2, 'precision': 0.5, 'recall': 0.3333333333333333}
    """
    scenes = scene_N.tolist()
    unique = {(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}
    right = sum(scenes[i] == scenes[j] != ALONE for i, j in unique)
    return scores(len(unique), right, scenes)


def scores(found: int, right: int, scenes: Sequence[int]) -> dict[str, float]:
    """So many pairs found, of which so many are right."""
    there = sum(_pairs(n) for scene, n in Counter(scenes).items() if scene != ALONE)
    return {
        "pairs": found,
        "precision": right / found if found else 1.0,
        "recall": right / there if there else 1.0,
    }


def _pairs(n: int) -> int:
    return n * (n - 1) // 2
