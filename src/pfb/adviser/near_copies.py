"""Finding: near-copies, and which of them are no more than alike.

Shape suffixes: N samples, D feature dimensions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfb.adviser.scan import Progress, Scan
from pfb.copies.acting import by_label
from pfb.copies.near_duplicates import find_copies
from pfb.copies.reach import in_deviations

OWN_VIEWS = 1.0  # times the distance to its own view, within which a neighbour is a near-copy
SEEN_ROWS = 3  # of a group, in the memory: then its copies are seen
DEFAULT_MEMORY = 4096
NEARLY_ALL = 0.9  # of the data: then hardly a group is missed
WORTH_TELLING = 0.01  # of the samples
TOKENS = 2  # the kind of input


@dataclass(frozen=True)
class NearCopies:
    """What was found when all samples were compared with all.

    Attributes:
        near: share of the samples that have a near-copy.
        groups: indices of near-copies of each other, the largest group first; in each the one to
            keep first, and the others ascending.
        parts: the same, split by label: what to act on, since where labels differ one sample of
            each should stay.
        spare: share that could go if one sample of each group stayed.
        seen: the part of that whose groups are large enough for the memory to see.
        equal: share that could go because it is equal to another to the last bit.
        dense: share that lies near others, but farther than its own slightly changed view: more
            alike than the rest, and no copy.
        memory: rows for :class:`pfb.NeighbourMemory`.
        least_group: near-copies in a group of the whole data of which three were likely looked at;
            ``None`` if nearly all samples were.
        hints: what hides copies here.
        group_sizes: ``[N]``, size of the group of each, 1 for a single one.
        distances: ``[N]``, to the nearest other sample, in deviations of the features.
    """

    near: float
    groups: tuple[tuple[int, ...], ...]
    parts: tuple[tuple[int, ...], ...]
    spare: float
    seen: float
    equal: float
    dense: float
    memory: int
    least_group: int | None
    hints: tuple[str, ...]
    group_sizes: Tensor = field(repr=False, compare=False)
    distances: Tensor = field(repr=False, compare=False)

    @property
    def conflicts(self) -> int:
        """How many groups hold several labels."""
        whole = set(map(frozenset, self.parts))
        return sum(frozenset(group) not in whole for group in self.groups)

    @property
    def few(self) -> float:
        """The part of ``spare`` whose groups are too small for the memory."""
        return self.spare - self.seen


def find(seen: Scan, progress: Progress) -> NearCopies:
    """Compare all samples of a pass."""
    n, total = len(seen), max(len(seen), seen.total or 0)
    near_N, groups, distance_N, loose_N = confirmed(
        seen.features, seen.own, seen.kind == 0, lambda rows: progress("comparing samples", rows, n)
    )
    parts = groups if seen.labels is None else by_label(groups, seen.labels.tolist())
    sizes_N = torch.ones(n, dtype=torch.int64)
    equal, seen_by_memory = 0, []
    for group in groups:
        sizes_N[list(group)] = len(group)
        equal += len(group) - len({seen.digests[i] for i in group})
        if len(group) * total / n >= 3 * SEEN_ROWS:  # a third of an epoch holds a third of them
            seen_by_memory += [len(group)] * (len(group) - 1)
    return NearCopies(
        float(near_N.double().mean()),
        tuple(seen.numbered(group) for group in groups),
        tuple(seen.numbered(part) for part in parts),
        sum(len(group) - 1 for group in groups) / n,
        len(seen_by_memory) / n,
        equal / n,
        float(loose_N.double().mean()),
        _memory(seen_by_memory, n, total),
        None if n >= NEARLY_ALL * total else math.ceil(SEEN_ROWS * total / n),
        tuple(_hints(seen)),
        sizes_N,
        distance_N,
    )


def say(found: NearCopies) -> list[tuple[str, str]]:
    """Rows of the advice."""
    text = f"{found.near:.1%} of the samples have one"
    if found.groups:
        sizes = ", ".join(str(len(group)) for group in found.groups[:3])
        many = f"{len(found.groups):,} group{'s' if len(found.groups) > 1 else ''}"
        text += f", in {many} (largest: {sizes}); {found.spare:.1%} could be spared"
    if found.least_group is not None:
        text += f". Of a part of the data, groups of fewer than about {found.least_group:,} are mostly not seen"
    rows = [("near-copies", ". ".join([text, *found.hints]))]
    if found.conflicts:
        rows.append(("conflicts", f"labels differ in {found.conflicts:,} of these groups: one of each label should stay"))
    if found.dense >= WORTH_TELLING:
        rows.append(
            (
                "only alike",
                f"{found.dense:.1%} of the samples lie close together, but no closer than a slightly changed view of "
                "the same sample would: they are smooth or simple, not copies, and not counted as such",
            )
        )
    return rows


def confirmed(
    features_ND: Tensor, own_ND: Tensor | None, images: bool, on_rows: Callable[[int], None]
) -> tuple[Tensor, list[tuple[int, ...]], Tensor, Tensor]:
    """Near-copies, and only those that are nearer than a sample's own view, where one is known.

    Returns:
        Whether each sample has one ``[N]``, groups of places, distance to the nearest other sample
        ``[N]``, and which samples have neighbours that near but for their own view ``[N]``.
    """
    found = find_copies(features_ND, images=images, on_rows=on_rows)
    n = len(features_ND)
    both = features_ND if own_ND is None else torch.cat([features_ND, own_ND])
    z_ND = in_deviations(both.nan_to_num(0.0, 0.0, 0.0))
    distance_N = (z_ND[:n] - z_ND[:n][found.nearest]).square().sum(1).sqrt()
    if own_ND is None:
        return found.near, list(found.groups), distance_N, torch.zeros(n, dtype=torch.bool)
    moved_N = OWN_VIEWS * (z_ND[n:] - z_ND[:n]).square().sum(1).sqrt()
    groups = []
    for first, *others in found.groups:
        others_M = torch.tensor(others)
        reach_M = torch.maximum(moved_N[others_M], moved_N[first])
        near_M = (z_ND[others_M] - z_ND[first]).square().sum(1).sqrt() <= reach_M
        if near_M.any():
            groups.append((first, *others_M[near_M].tolist()))
    near_N = torch.zeros(n, dtype=torch.bool)
    near_N[torch.tensor([i for group in groups for i in group], dtype=torch.int64)] = True
    return near_N, sorted(groups, key=lambda group: (-len(group), min(group))), distance_N, found.near & ~near_N


def _memory(sizes: list[int], n: int, total: int) -> int:
    """Rows in which half of the copies have three of their like; at most a third of an epoch."""
    wanted = SEEN_ROWS * n / statistics.median(sizes) if sizes else 0
    size = 1 << math.ceil(math.log2(max(DEFAULT_MEMORY, wanted)))
    return max(2, min(size, total // 3))


def _hints(seen: Scan) -> Iterable[str]:
    if seen.augmented:
        yield "Inputs are augmented, which hides some: look again without; if that finds more, pass `by=` to the pruner"
    if seen.kind == TOKENS:
        yield (
            "Of tokens those are found that differ in about one of forty at most: pass `features=`, an embedding, for "
            "others"
        )
