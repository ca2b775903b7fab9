"""What to do with near-copies: leave them out, draw them less often, list those whose labels
differ, choose the one to keep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pfb.copies import files
from pfb.copies.quality import sharpness, size

Best = Literal["central", "largest", "sharpest"] | Callable[[int], float]
Groups = tuple[tuple[int, ...], ...]
CLEARLY = 0.71  # of the reach of a near-copy


@dataclass(frozen=True)
class Copies:
    """What :func:`pfb.find_copies` found among N samples, and what to do with it.

    Attributes:
        near: ``[N]`` bool, whether another sample is a near-copy of it.
        groups: indices of samples that are near-copies of the first in each group; the first is the
            one to keep, by default the most central. The others ascend; the largest group is
            first. No sample is in two.
        alike: ``[N]`` int64, how many samples are near-copies of each, itself included; of more
            than 50,000 samples at least so many.
        nearest: ``[N]`` int64, the nearest other sample.
        distance: ``[N]`` float32, to that sample, in units of how far a near-copy reaches there: of
            near-copies 1 at most.
        labels: one of each sample, or ``None`` if they are not known. Where they are, a group keeps
            one sample for each of its labels.

    Example:
        >>> import torch, pfb
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(500, 12)
        >>> x[300:303] = x[7] + 0.01 * torch.randn(3, 12)
        >>> found = pfb.find_copies(x)
        >>> len(found.keep), found.weights[7].item(), found.weights[8].item()
        (497, 0.25, 1.0)
    """

    near: Tensor
    groups: Groups
    alike: Tensor
    nearest: Tensor
    distance: Tensor
    labels: tuple[Hashable, ...] | None = None

    @property
    def unclear(self) -> float:
        """Share of the samples whose nearest is neither clearly a copy nor clearly none, at 0.71 to
        1.41 of how far one reaches. High where copies shade into the rest, and groups are
        arbitrary.
        """
        return float(((self.distance > CLEARLY) & (self.distance < 1 / CLEARLY)).double().mean())

    @property
    def keep(self) -> Tensor:
        """Indices to train on (ascending, int64), without the surplus of each group."""
        return kept(self.parts, len(self.near))

    @property
    def weights(self) -> Tensor:
        """``[N]`` float64, 1 / size of its group, 1 outside of groups: with
        ``WeightedRandomSampler`` a group is drawn as often as one single sample.
        """
        return weights(self.parts, len(self.near))

    @property
    def parts(self) -> Groups:
        """The groups that ``keep`` and ``weights`` act on: those of ``groups``, each split by its
        labels if these are known.
        """
        return self.groups if self.labels is None else by_label(self.groups, self.labels)

    def conflicts(self) -> Groups:
        """Groups that hold several labels, which someone should look at: the label is wrong, or the
        copies differ in what is asked.

        Raises:
            ValueError: no labels are known.

        Example:
            >>> import torch, pfb
            >>> _ = torch.manual_seed(0)
            >>> labels = ["cat"] * 199 + ["dog"]
            >>> pfb.find_copies(torch.randn(100, 8).repeat(2, 1), labels).conflicts()
            ((99, 199),)
        """
        if (known := self.labels) is None:
            raise ValueError("`labels` must be given to find_copies(labels=...) or by with_labels(labels) (got None)")
        return tuple(group for group in self.groups if len({known[i] for i in group}) > 1)

    def with_labels(self, labels: Sequence[Hashable] | Tensor | None) -> Copies:
        """The same groups, of which ``keep`` holds one sample for each label; with ``None`` one of
        each, whatever the labels.

        Raises:
            ValueError: not one label for each sample.
        """
        return dataclasses.replace(self, labels=None if labels is None else listed(labels, len(self.near)))

    def keeping(self, best: Best = "central", samples: Any = None) -> Copies:
        """The same groups, each with the best first: the one that ``keep`` holds.

        Args:
            best: ``"central"``, to which most of the group are alike; ``"largest"``, by pixels, or
                characters of a text, then bytes of the file; ``"sharpest"``, by the variance of the
                Laplacian of its grey values (noise counts as sharp); or a function of an index that
                returns a number, of which the largest wins. Of equals the first in the group stays.
            samples: what ``"largest"`` and ``"sharpest"`` look at: ``samples[i]`` is an image
                ``[C, H, W]`` or ``[H, W]`` (tensor or array), the path of an image file, a text
                (largest), or a tuple that begins with one of these. Only members of groups are
                read.

        Raises:
            ValueError: another name, or ``samples`` that are missing or have no size.

        Example:
            >>> import torch, pfb
            >>> found = pfb.find_copies(torch.tensor([[1.0], [1.0], [2.0]]))
            >>> found.groups, found.keeping("largest", ["a cat", "one black cat", "dog"]).groups
            (((0, 1),), ((1, 0),))
            >>> found.keeping(lambda i: i).keep.tolist()
            [1, 2]
        """
        value = _value(best, samples, self.alike)
        groups = tuple(tuple(sorted(group, key=value, reverse=True)) for group in self.groups)
        if self.labels is None:
            groups = tuple((group[0], *sorted(group[1:])) for group in groups)
        return dataclasses.replace(self, groups=groups)

    def write(self, place: str | Path, names: Sequence[str] | None = None) -> None:
        """Write a list that other tools read; its name says which. ``.txt``: what to keep, one name
        or index a line. ``.csv`` with "weights" in its name: all samples with their weight. Another
        ``.csv``: the groups, and which of each to keep.

        Args:
            place: the file; what stands there is replaced.
            names: of all N samples, such as their files.

        Raises:
            ValueError: another ending, or not one name for each sample.
            OSError: it cannot be written.
        """
        text = files.as_text(Path(place).name, self.parts, len(self.near), names)
        Path(place).write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def kept(groups: Sequence[Sequence[int]], n: int) -> Tensor:
    """All of n indices but those that are not the first of their group, ascending, int64.

    Example:
        >>> kept([(3, 0, 1)], 5).tolist()
        [2, 3, 4]
    """
    keep_N = torch.ones(n, dtype=torch.bool)
    keep_N[torch.tensor([i for group in groups for i in group[1:]], dtype=torch.int64)] = False
    return keep_N.nonzero()[:, 0]


def weights(groups: Sequence[Sequence[int]], n: int) -> Tensor:
    """1 / size of the group of each of n samples, 1 for the others, ``[n]`` float64.

    Example:
        >>> weights([(3, 0)], 4).tolist()
        [0.5, 1.0, 1.0, 0.5]
    """
    weights_N = torch.ones(n, dtype=torch.float64)
    for group in groups:
        weights_N[list(group)] = 1 / len(group)
    return weights_N


def by_label(groups: Sequence[Sequence[int]], labels: Sequence[Hashable]) -> Groups:
    """Groups split so that all of one have the same label; what is alone then is left out.

    Example:
        >>> by_label([(4, 0, 1, 2), (3, 5)], "bcbabc")
        ((4, 0, 2),)
    """
    split: list[tuple[int, ...]] = []
    for group in groups:
        members: dict[Hashable, list[int]] = {}
        for i in group:
            members.setdefault(labels[i], []).append(i)
        split += [tuple(part) for part in members.values() if len(part) > 1]
    return tuple(sorted(split, key=lambda part: -len(part)))


def listed(labels: Sequence[Hashable] | Tensor, n: int) -> tuple[Hashable, ...]:
    """One label for each of n samples.

    Raises:
        ValueError: more or fewer, or labels of several numbers each.
    """
    if isinstance(labels, Tensor) and labels.dim() != 1:
        raise ValueError(
            f"`labels` must be one for each sample, [N] (got shape {tuple(labels.shape)}): "
            "of samples with several, pass a number that tells them apart, or none"
        )
    found = tuple(labels.tolist() if hasattr(labels, "tolist") else labels)
    if len(found) != n:
        raise ValueError(f"`labels` must be one for each of the {n:,} samples (got {len(found):,})")
    return found


def _value(best: Best, samples: Any, alike: Tensor) -> Callable[[int], Any]:
    if callable(best):
        return best
    if best == "central":
        return lambda i: int(alike[i])
    if best not in ("largest", "sharpest"):
        raise ValueError(f'`best` must be "central", "largest", "sharpest" or a function of an index (got {best!r})')
    if samples is None:
        raise ValueError(f"best={best!r} looks at the samples: pass `samples=`, such as the data set or its files")
    measure = size if best == "largest" else sharpness
    return lambda i: measure(samples[i])
