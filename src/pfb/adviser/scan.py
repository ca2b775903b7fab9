"""One pass over a loader: what its samples are judged by, their labels, and what loading costs."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler, SubsetRandomSampler

from pfb.features.base import Features, FromFunction
from pfb.features.judged import as_classes, kind_of, labels_of
from pfb.model.inputs import Prepare, without_labels
from pfb.pruning.arguments import checked_features
from pfb.pruning.judging import Judge
from pfb.selection import nested as tree
from pfb.selection.select import Declared

FEWEST_ROWS = 8  # of a batch, by which a changed view is known
NUMBERS = 0.5  # different labels a sample: more are numbers, not classes

Progress = Callable[[str, int, int | None], None]
"""Told what is done, how much of it, and of how much, if that is known."""

REPEATS = (
    "`loader` gives some samples several times (as WeightedRandomSampler does), so that each looks like a copy of "
    "itself: give it without that sampler"
)


@dataclass
class Scan:
    """What one pass saw of N samples.

    Attributes:
        features: ``[N, D]`` float32 on the CPU.
        own: those of a slightly changed view of each sample, or ``None`` where none is known.
        digests: a fingerprint of each sample.
        index: the number of each sample, in the loader's order if nothing else is known.
        known_indices: whether these are the data set's.
        labels: ``[N]`` classes, if the loader gives any.
        not_finite: places of samples that hold NaN or infinity, in input or labels.
        first: input and judged part of the first batch.
        batch_size: samples of that.
        total: of the whole data set, if the loader tells.
        is_part: whether a sampler gives a part of the data set only.
        unlabelled: whether batches have several parts, and none was recognized as classes.
        kind: what is judged: 0 images, 1 sequences, 2 tokens, 3 vectors; ``None``: by features of
            the user's.
        load_seconds: of the processor for a batch, without the first; ``None`` where worker
            processes load, or there was only one.
        augmented: whether the same sample, read twice, differed.
    """

    features: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    own: Tensor | None = None
    digests: list[bytes] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    known_indices: bool = True
    labels: Tensor | None = None
    not_finite: list[int] = field(default_factory=list)
    first: tuple[Any, Any] | None = None
    batch_size: int = 0
    total: int | None = None
    is_part: bool = False
    unlabelled: bool = False
    kind: int | None = None
    load_seconds: float | None = None
    augmented: bool = False

    def __len__(self) -> int:
        return len(self.digests)

    def numbered(self, places: Iterable[int]) -> tuple[int, ...]:
        """The numbers of samples at these places."""
        return tuple(self.index[i] for i in places)


def scan(
    loader: Iterable[Any], prepare: Prepare | None, features: Features | Any, samples: int, progress: Progress
) -> Scan:
    """Read up to so many samples of a loader.

    Raises:
        TypeError: no loader, or batches of which nothing is known.
        ValueError: it gives no sample, or the same one several times, features are not ``[N, D]``,
            or their width changes.
    """
    if isinstance(loader, (str, bytes, dict)) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise TypeError(f"`loader` must be an iterable of batches, such as a DataLoader (got {_named(loader)})")
    sampler = _sampler_of(loader)
    if getattr(sampler, "replacement", False):
        raise ValueError(REPEATS)
    in_order = isinstance(loader, (list, tuple)) or isinstance(sampler, SequentialSampler)
    found = Scan(known_indices=in_order)
    of_data, drawn = _length(getattr(loader, "dataset", None)), _length(sampler)
    found.total = drawn if isinstance(sampler, SubsetRandomSampler) or of_data is None else of_data
    found.is_part = (drawn or 0) < (of_data or 0) and not hasattr(
        sampler, "num_replicas"
    )  # of which others get the rest
    judge = Judge(checked_features(features), Declared(), "features")
    rows: list[Tensor] = []
    own: list[Tensor | None] = []
    labels: list[Tensor | None] = []
    seconds: list[float] = []
    iterator, of = iter(loader), min(found.total or samples, samples)
    while len(found) < samples:
        begin = time.process_time()
        try:
            batch = next(iterator)
        except StopIteration:
            break
        seconds.append(time.process_time() - begin)
        x, y, index = _prepared(batch, prepare)
        _, judged, features_ND = judge.judge(x, None)
        n = len(features_ND)
        if n == 0:
            continue
        y_N = labels_of(batch, n, floats=True) if prepare is None else as_classes(y, n, floats=True)
        if found.first is None:
            found.first, found.batch_size, found.kind = (x, judged), n, None
            if not isinstance(judge.features, FromFunction):
                found.kind = kind_of(judged)
            found.augmented = _is_augmented(getattr(loader, "dataset", None))
        if rows and features_ND.size(1) != rows[0].size(1):
            raise ValueError(
                "`features` must return [N, D] with one D for all batches (got "
                f"{tuple(features_ND.shape)}, {rows[0].size(1)} dimensions before)"
            )
        view = changed_view(judge.features, judged, features_ND, len(rows))
        first, taken = len(found), min(n, samples - len(found))  # of the last batch not all
        rows.append(features_ND[:taken].detach().float().cpu())
        own.append(None if view is None else view[:taken].detach().float().cpu())
        labels.append(None if y_N is None else y_N[:taken].detach().cpu())
        found.unlabelled |= y_N is None and len(tree.children(batch) or ()) > 1
        found.not_finite += [first + i for i in _not_finite(batch if prepare is None else (x, y), n) if i < taken]
        found.index += [int(i) for i in index[:taken]] if index is not None else range(first, first + taken)
        found.known_indices |= index is not None
        found.digests += digests(judged[:taken])
        progress("reading samples", len(found), of)
    if not len(found):
        raise ValueError("`loader` gave no samples: is the data set empty, or a generator that was used up before?")
    if len(set(found.index)) < len(found.index):
        raise ValueError(REPEATS)
    if isinstance(loader, (list, tuple)) and len(found) < samples:
        found.total = len(found)
    if max(found.index) >= (of_data or math.inf):
        raise ValueError(
            f"`prepare` returned index {max(found.index)}, and the loader's data set has {of_data} samples: return "
            "places in that data set, not in what it is a part of"
        )
    found.features, found.own, found.labels = torch.cat(rows), _all(own), _all(labels)
    if found.labels is not None and len(torch.unique(found.labels)) > NUMBERS * len(found):
        found.labels = None
    if getattr(loader, "num_workers", 0) == 0 and len(seconds) > 1:
        found.load_seconds = sum(seconds[1:]) / (len(seconds) - 1)
    return found


@contextlib.contextmanager
def random_states_kept(loader: Any, device: torch.device) -> Iterator[None]:
    """Afterwards all random numbers are drawn as if nothing had happened inside: those of torch,
    Python, NumPy if it is loaded, and the loader's own generators.
    """
    owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None), _sampler_of(loader))
    devices, kind = ([], "cuda") if device.type == "cpu" else ([device], device.type)
    with contextlib.ExitStack() as after, torch.random.fork_rng(devices, device_type=kind):
        after.callback(random.setstate, random.getstate())
        if numpy := sys.modules.get("numpy"):
            after.callback(numpy.random.set_state, numpy.random.get_state())
        for owner in owners:
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                after.callback(generator.set_state, generator.get_state())
        yield


def changed_view(features: Features, judged: Any, features_ND: Tensor, number: int) -> Tensor | None:
    """Features of a slightly changed view of each sample of batch ``number``, of which these are
    the features; NaN of so few that they do not tell by how much columns vary.
    """
    view = features.own_view(judged, torch.Generator(features_ND.device).manual_seed(number))
    return view if view is None or len(features_ND) >= FEWEST_ROWS else torch.full_like(view, torch.nan)


def _sampler_of(loader: Any) -> Any:
    """What decides which samples come, in which order; ``None`` where that cannot be told. A loader
    that is given batches of indices has a sampler that does nothing.
    """
    batches = getattr(loader, "batch_sampler", None)
    return getattr(loader, "sampler", None) if batches is None else getattr(batches, "sampler", None)


def _length(counted: Any) -> int | None:
    with contextlib.suppress(TypeError, NotImplementedError):
        return len(counted)
    return None


def _prepared(batch: Any, prepare: Prepare | None) -> tuple[Any, Any, Any]:
    """Input, labels and index; of a batch that nobody prepares, the input is all but its labels."""
    if prepare is None:
        return without_labels(batch), None, None
    made = prepare(batch)
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise TypeError(f"`prepare` must return (input, labels) or (input, labels, index) (got {_named(made)})")
    return (*made, None) if len(made) == 2 else made


def _all(parts: list[Tensor | None]) -> Tensor | None:
    """All parts in one, if none is missing."""
    there = [x for x in parts if x is not None]
    return torch.cat(there) if len(there) == len(parts) else None


def digests(judged: Any) -> list[bytes]:
    """A fingerprint of each sample, equal for those that are equal to the last bit.

    Example:
        >>> a, b, c = digests(torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 2.0]]))
        >>> a == b, a == c
        (True, False)
    """
    found = []
    for x in judged.detach().cpu() if isinstance(judged, Tensor) else judged:
        row = x.detach().cpu().contiguous()
        content = ctypes.string_at(row.data_ptr(), row.numel() * row.element_size())
        found.append(hashlib.blake2b(content, digest_size=16).digest() + str(tuple(x.shape)).encode())
    return found


def _not_finite(batch: Any, n: int) -> list[int]:
    """Places in a batch of n samples that hold NaN or infinity."""
    finite_N = torch.ones(n, dtype=torch.bool)
    for leaf in tree.leaves(batch):
        if leaf.is_floating_point() and leaf.dim() > 0 and len(leaf) == n:
            finite_N &= leaf.detach().isfinite().reshape(n, -1).all(1).cpu()
    places: list[int] = (~finite_N).nonzero()[:, 0].tolist()
    return places


def _is_augmented(dataset: Any) -> bool:
    """Whether the first or last sample differs when it is read twice."""
    with contextlib.suppress(Exception):  # a stream, or a data set with demands of its own
        for i in (0, len(dataset) - 1):
            pairs = zip(tree.leaves(dataset[i]), tree.leaves(dataset[i]), strict=True)
            if any(not torch.equal(a, b) for a, b in pairs):
                return True
    return False


def _named(x: Any) -> str:
    return f"shape {tuple(x.shape)}, {x.dtype}" if isinstance(x, Tensor) else repr(x)[:60]
