"""A test set of whole groups of near-copies: ``--split groups``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pfb.adviser.scan import changed_view
from pfb.copies.acting import Copies
from pfb.copies.near_duplicates import find_copies
from pfb.features.sketch import Sketch
from pfb.lab.errors import RunError

TEST = 5  # one sample of so many
SEED = 0  # the same test set for all methods and seeds


def sketched(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Sketches ``[N, D]`` of samples that come in parts, and those of changed views, as
    :func:`pfb.advise` makes them.
    """
    sketch, found = Sketch(), []
    for number, part in enumerate(parts):
        part_ND = sketch(part)
        found.append((part_ND, changed_view(sketch, part, part_ND, number)))
    features, own = zip(*found, strict=True)
    return torch.cat(features), torch.cat(own)


def copies_among(parts: Iterable[Tensor], images: bool) -> Copies:
    """Near-copies among samples that come in parts.

    Raises:
        RunError: there are so many samples that it takes a package which is not installed.
    """
    features, own = sketched(parts)
    try:
        return find_copies(features, own=own, images=images)
    except ImportError as error:
        raise RunError(str(error).split("; or pass")[0]) from error


def linked(copies: Copies) -> list[tuple[int, ...]]:
    """Groups that are joined where the nearest of a near-copy is in another, as frames of a scene
    that moves on: no sample's nearest near-copy is outside of its own.
    """
    leader = list(range(len(copies.near)))

    def led(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    pairs = [(group[0], other) for group in copies.groups for other in group[1:]]
    pairs += [(i, int(copies.nearest[i])) for i in copies.near.nonzero()[:, 0].tolist()]
    for one, other in pairs:
        leader[led(other)] = led(one)
    members: dict[int, list[int]] = {}
    for i in range(len(leader)):
        members.setdefault(led(i), []).append(i)
    return [tuple(group) for group in members.values() if len(group) > 1]


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
    left = Counter(labels.tolist())
    for its in of_class.values():
        wanted, drawn = sum(map(len, its)) / TEST, 0
        for unit in its[:-1]:
            classes = Counter(labels[list(unit)].tolist())
            stays = all(left[c] > count for c, count in classes.items())  # it may hold all of another class
            if stays and abs(drawn + len(unit) - wanted) < abs(drawn - wanted):
                test += unit
                drawn += len(unit)
                left -= classes
    tested = set(test)
    return [i for i in range(len(labels)) if i not in tested], sorted(test)
