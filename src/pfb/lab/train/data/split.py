"""A test set of whole groups of near-copies: ``--split groups``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfb.copies.acting import Groups
from pfb.copies.near_duplicates import find_copies
from pfb.lab.errors import RunError

TEST = 5  # one sample of so many
SEED = 0  # the same test set for all methods and seeds


def groups_among(features: Tensor, images: bool) -> Groups:
    """Groups of near-copies.

    Raises:
        RunError: there are so many samples that it takes a package which is not installed.
    """
    try:
        return find_copies(features, images=images).groups
    except ImportError as error:
        raise RunError(str(error).split("; or pass")[0]) from error


def by_groups(groups: Sequence[Sequence[int]], labels: Tensor) -> tuple[list[int], list[int]]:
    """Indices of a training and a test set, ascending, so that no group is in both.

    Of every class groups and single samples are drawn for the test until it has a fifth of the
    class, or the next one would take it further away from that. At least one of every class stays
    in training. A group of several classes counts as its first sample's.

    Args:
        groups: of near-copies; no sample is in two.
        labels: class of each sample, ``[N]``.

    Example:
        >>> train, test = by_groups([(0, 1, 2), (5, 6)], torch.zeros(12, dtype=torch.int64))
        >>> test
        [3, 11]
    """
    grouped = {i for group in groups for i in group}
    units = [tuple(group) for group in groups] + [(i,) for i in range(len(labels)) if i not in grouped]
    generator = torch.Generator().manual_seed(SEED)
    of_class: dict[int, list[tuple[int, ...]]] = {}
    for number in torch.randperm(len(units), generator=generator).tolist():
        of_class.setdefault(int(labels[units[number][0]]), []).append(units[number])
    test: list[int] = []
    for its in of_class.values():
        wanted, drawn = sum(map(len, its)) / TEST, 0
        for unit in its[:-1]:
            if abs(drawn + len(unit) - wanted) < abs(drawn - wanted):
                test += unit
                drawn += len(unit)
    tested = set(test)
    return [i for i in range(len(labels)) if i not in tested], sorted(test)
