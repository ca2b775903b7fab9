"""Finding: near-copies, which are nearer to each other than a sample is to its own changed view.

Shape suffixes: N samples, D feature dimensions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfb.adviser.scan import Progress, Scan
from pfb.copies.near_duplicates import find_copies

SEEN_ROWS = 3  # of a group, in the memory: then its copies are seen
DEFAULT_MEMORY = 4096
FADING = 0.1  # of the near-copies: with so many unclear ones they shade into the rest
NEARLY_ALL = 0.9  # of the data: then hardly a group is missed
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
        conflicts: how many groups hold several labels.
        spare: share that could go if one sample of each group stayed.
        seen: the part of that whose groups are large enough for the memory to see.
        unclear: share that is neither clearly a copy nor clearly none.
        equal: share that could go because it is equal to another to the last bit.
        memory: rows for :class:`pfb.NeighbourMemory`.
        least_group: near-copies in a group of the whole data of which three were likely looked at;
            ``None`` if nearly all samples were.
        hints: what hides copies here.
        group_sizes: ``[N]``, size of the group of each, 1 for a single one.
        distances: ``[N]``, to the nearest other sample, in units of how far a near-copy reaches.
    """

    near: float
    groups: tuple[tuple[int, ...], ...]
    parts: tuple[tuple[int, ...], ...]
    conflicts: int
    spare: float
    seen: float
    equal: float
    unclear: float
    memory: int
    least_group: int | None
    hints: tuple[str, ...]
    group_sizes: Tensor = field(repr=False, compare=False)
    distances: Tensor = field(repr=False, compare=False)

    @property
    def shade(self) -> bool:
        """Whether copies shade into the rest, so that where a group ends is arbitrary."""
        return self.unclear > FADING * self.near

    @property
    def few(self) -> float:
        """The part of ``spare`` whose groups are too small for the memory."""
        return self.spare - self.seen


def find(seen: Scan, progress: Progress) -> NearCopies:
    """Compare all samples of a pass."""
    n, total = len(seen), max(len(seen), seen.total or 0)
    found = find_copies(
        seen.features,
        seen.labels,
        own=seen.own,
        images=seen.kind == 0,
        exact=True,
        on_rows=lambda rows: progress("comparing samples", rows, n),
    )
    sizes_N = torch.ones(n, dtype=torch.int64)
    equal, seen_by_memory = 0, []
    for group in found.groups:
        sizes_N[list(group)] = len(group)
        equal += len(group) - len({seen.digests[i] for i in group})
        if len(group) * total / n >= 3 * SEEN_ROWS:  # a third of an epoch holds a third of them
            seen_by_memory += [len(group)] * (len(group) - 1)
    return NearCopies(
        float(found.near.double().mean()),
        tuple(seen.numbered(group) for group in found.groups),
        tuple(seen.numbered(part) for part in found.parts),
        0 if found.labels is None else len(found.conflicts()),
        sum(len(group) - 1 for group in found.groups) / n,
        len(seen_by_memory) / n,
        equal / n,
        found.unclear,
        _memory(seen_by_memory, n, total),
        None if n >= NEARLY_ALL * total else math.ceil(SEEN_ROWS * total / n),
        tuple(_hints(seen)),
        sizes_N,
        found.distance,
    )


def say(found: NearCopies) -> list[tuple[str, str]]:
    """Rows of the advice."""
    text = f"{found.near:.1%} of the samples have one"
    if found.groups:
        sizes = ", ".join(str(len(group)) for group in found.groups[:3])
        many = f"{len(found.groups):,} group{'s' if len(found.groups) > 1 else ''}"
        text += f", in {many} (largest: {sizes}); {found.spare:.1%} could be spared"
        text += f", {found.equal:.1%} because they are equal to others to the last bit" if found.equal else ""
    text += f"; {found.unclear:.1%} are neither clearly copies nor clearly none" if found.groups else ""
    if found.least_group is not None:
        text += f". Of a part of the data, groups of fewer than about {found.least_group:,} are mostly not seen"
    rows = [("near-copies", ". ".join([text, *found.hints]))]
    if found.conflicts:
        rows.append(
            ("conflicts", f"labels differ in {found.conflicts:,} of these groups: one of each label should stay")
        )
    return rows


def _memory(sizes: list[int], n: int, total: int) -> int:
    """Rows in which half of the copies have three of their like; at most a third of an epoch."""
    wanted = SEEN_ROWS * n / statistics.median(sizes) if sizes else 0
    size = 1 << math.ceil(math.log2(max(DEFAULT_MEMORY, wanted)))
    return max(2, min(size, total // 3))


def _hints(seen: Scan) -> Iterable[str]:
    if seen.unlabelled:
        yield "No classes were recognized, so that copies of different labels count as one: pass `prepare=`"
    if seen.augmented:
        yield "Inputs are augmented, which hides some: look again without; if that finds more, pass `by=` to the pruner"
    if seen.kind == TOKENS:
        yield "Of tokens one in ten may differ from a common original: pass `features=`, an embedding, to see more"
