"""One pass over a loader: features, equal and broken samples, labels, and the time it takes."""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler, SubsetRandomSampler

from pfb.features import model_inputs as batches
from pfb.features.model_inputs import Prepare
from pfb.adviser.noise_scale import are_classes, rows_of
from pfb.selection import nested as tree

HELD = 8  # batches that are kept for measuring
HELD_BYTES = 2**30
FEWEST_VALUES = 8  # a sample of fewer may have all equal by chance
SORTED = 0.5  # of the changes of class that a random order has

Progress = Callable[[str, int, int | None], None]
"""Told what is done, how much of it, and of how much, if that is known."""


@dataclass
class Survey:
    """What one pass saw of N samples.

    Attributes:
        features: ``[N, D]`` float32 on the CPU.
        digests: a fingerprint of each sample.
        index: the number of each sample, in the loader's order if nothing else is known.
        known_indices: whether these are the data set's.
        labels: ``[N]`` classes, if the loader gives any.
        constant, not_finite: places of samples whose values are all the same, or not all finite.
        held: the first batches as ``(input, labels)``.
        batch_size: samples of the first batch.
        waits, busy: seconds for each batch, spent in the loader and on it.
        augmented: whether the same sample, read twice, differed.
    """

    features: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    digests: list[bytes] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    known_indices: bool = True
    labels: Tensor | None = None
    constant: list[int] = field(default_factory=list)
    not_finite: list[int] = field(default_factory=list)
    held: list[tuple[Any, Any]] = field(default_factory=list)
    batch_size: int = 0
    waits: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    augmented: bool = False

    @property
    def wait(self) -> float | None:
        """Mean seconds that a batch was waited for, without the first, for which workers start;
        ``None`` if there was only that.
        """
        return statistics.fmean(self.waits[1:]) if len(self.waits) > 1 else None

    def wait_beside(self, step_seconds: float, overlaps: bool) -> float | None:
        """Mean seconds that training would wait for a batch, with steps that take so long: with
        workers it only waits for what they do not get done meanwhile.
        """
        if self.wait is None or not overlaps:
            return self.wait
        return max(0.0, self.wait + statistics.fmean(self.busy[1:]) - step_seconds) if self.wait > 0 else 0.0

    @property
    def in_runs(self) -> bool:
        """Whether samples of one class follow each other far more often than in a random order."""
        if self.labels is None or len(self.labels) < 2:
            return False
        shares = torch.unique(self.labels, return_counts=True)[1] / len(self.labels)
        changes = float((self.labels.diff() != 0).float().mean())
        return changes < SORTED * float(1 - shares.square().sum())


def survey(
    model: nn.Module,
    loader: Iterable[Any],
    prepare: Prepare | None,
    features: Callable[[Any], Tensor],
    samples: int,
    progress: Progress,
) -> Survey:
    """Read up to so many samples of a loader.

    Raises:
        TypeError: no loader, or batches of which nothing is known.
        ValueError: it gives no sample, or the same one several times, features are not ``[N, D]``,
            or their width changes.
    """
    if isinstance(loader, (str, bytes, dict)) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise TypeError(f"`loader` must be an iterable of batches, such as a DataLoader (got {_named(loader)})")
    if getattr(getattr(loader, "sampler", None), "replacement", False):
        raise ValueError(OFTEN)
    found, held_bytes = Survey(known_indices=_in_order(loader)), 0
    rows: list[Tensor] = []
    labels: list[Tensor | None] = []
    total, iterator = total_of(loader), iter(loader)
    while len(found.digests) < samples:
        begin = time.perf_counter()
        try:
            batch = next(iterator)
        except StopIteration:
            break
        given = time.perf_counter()
        x, y, index = _prepared(batch, prepare, model)
        judged = batches.judged(model, x)
        n = rows_of(judged)
        if n == 0:
            continue
        if not found.held:
            batches.try_out(model, x)
            found.batch_size = n
            found.augmented = _differ(loader, x, lambda batch=batch: _prepared(batch, prepare, model)[0])  # type: ignore[misc]
        if len(found.held) < HELD and (not found.held or held_bytes < HELD_BYTES):
            found.held.append((x, y))
            held_bytes += sum(leaf.nbytes for leaf in tree.leaves(x))
        rows.append(_features(features, judged, n, rows))
        _note_broken(found, x, judged, n)
        labels.append(y.cpu() if are_classes(y) and len(y) == n else None)
        first = len(found.digests)
        found.index += [int(i) for i in index] if index is not None else range(first, first + n)
        found.known_indices |= index is not None
        found.digests += batches.digests(batches.without_labels(x), n)
        found.waits.append(given - begin)
        found.busy.append(time.perf_counter() - given)
        progress("reading samples", min(len(found.digests), samples), min(total or samples, samples))
    if not found.digests:
        raise ValueError("`loader` gave no samples: is the data set empty, or a generator that was used up before?")
    if len(set(found.index)) < len(found.index):
        raise ValueError(OFTEN)
    found.features = torch.cat(rows)
    if all(y is not None for y in labels):
        found.labels = torch.cat([y for y in labels if y is not None])
        if len(torch.unique(found.labels)) * 2 > len(found.labels):  # numbers, not classes
            found.labels = None
    return _cut_to(found, samples)


OFTEN = (
    "`loader` gives some samples several times (as WeightedRandomSampler does), so that each looks like a copy of "
    "itself: give it without that sampler"
)


def _in_order(loader: Any) -> bool:
    """Whether the loader is known to give the samples of its data set in their order."""
    return isinstance(loader, (list, tuple)) or isinstance(getattr(loader, "sampler", None), SequentialSampler)


def total_of(loader: Any) -> int | None:
    """Samples of the whole data set, or of the part that is trained on, if the loader tells."""
    if isinstance(sampler := getattr(loader, "sampler", None), SubsetRandomSampler):
        return len(sampler)
    for counted in (getattr(loader, "dataset", None), getattr(getattr(loader, "sampler", None), "data_source", None)):
        with contextlib.suppress(TypeError, NotImplementedError):
            return len(counted)  # type: ignore[arg-type]
    return None


@contextlib.contextmanager
def random_states_kept(loader: Any, device: torch.device) -> Iterator[None]:
    """Afterwards all random numbers are drawn as if nothing had happened inside: those of torch,
    Python, NumPy if it is loaded, and the loader's own generators.
    """
    owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    generators = [g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)]
    states = [g.get_state() for g in generators]
    numpy = sys.modules.get("numpy")
    plain, of_numpy = random.getstate(), numpy.random.get_state() if numpy else None
    devices = [] if device.type == "cpu" else [device]
    try:
        with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
            yield
    finally:
        random.setstate(plain)
        if numpy:
            numpy.random.set_state(of_numpy)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _prepared(batch: Any, prepare: Prepare | None, model: nn.Module) -> tuple[Any, Any, Any]:
    if prepare is None:
        return (*batches.split(batch, model), None)
    made = prepare(batch)
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise TypeError(f"`prepare` must return (input, labels) or (input, labels, index) (got {_named(made)})")
    return (*made, None) if len(made) == 2 else made


def _features(features: Callable[[Any], Tensor], judged: Any, n: int, before: list[Tensor]) -> Tensor:
    try:
        x = features(judged)
    except TypeError as error:
        if "features=" not in str(error):
            raise
        raise TypeError(
            f"near-copies cannot be told by this input (got {_named(judged)}); known are images [N, C, H, W], tokens "
            "[N, T], sequences [N, T, F] and vectors [N, F]. Pass `features=`, a function of it that returns [N, D]"
        ) from error
    width = before[0].size(1) if before else None
    if not isinstance(x, Tensor) or x.dim() != 2 or len(x) != n or width not in (None, x.size(1)):
        raise ValueError(
            f"`features` must return [N, D] with one D for all batches (got {_named(x)} for {n} samples"
            + (f", {width} dimensions before)" if width else ")")
        )
    return x.detach().float().cpu()


def _note_broken(found: Survey, x: Any, judged: Any, n: int) -> None:
    first = len(found.digests)
    finite_N = torch.ones(n, dtype=torch.bool)
    for leaf in tree.leaves(x):
        if leaf.is_floating_point() and leaf.dim() > 0 and len(leaf) == n:
            finite_N &= leaf.detach().isfinite().reshape(n, -1).all(1).cpu()
    found.not_finite += [first + i for i in (~finite_N).nonzero()[:, 0].tolist()]
    if isinstance(judged, Tensor) and judged[0].numel() >= FEWEST_VALUES:
        values = judged.detach().reshape(n, -1)
        constant_N = (values == values[:, :1]).all(1)
        found.constant += [first + i for i in constant_N.nonzero()[:, 0].tolist()]


def _differ(loader: Any, x: Any, again: Callable[[], Any]) -> bool:
    """Whether the same samples come out differently a second time."""
    n = rows_of(x)
    if batches.digests(x, n) != batches.digests(again(), n):
        return True
    dataset = getattr(loader, "dataset", None)
    with contextlib.suppress(Exception):  # a stream, or a data set with demands of its own
        for i in (0, len(dataset) - 1):  # type: ignore[arg-type]
            one, two = dataset[i], dataset[i]  # type: ignore[index]
            if any(batches.digests(a[None], 1) != batches.digests(b[None], 1) for a, b in _pairs(one, two)):
                return True
    return False


def _pairs(one: Any, two: Any) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(tree.leaves(one), tree.leaves(two), strict=True)


def _cut_to(found: Survey, samples: int) -> Survey:
    """Without what the last batch held too much."""
    found.features, found.digests, found.index = (
        found.features[:samples],
        found.digests[:samples],
        found.index[:samples],
    )
    found.labels = None if found.labels is None else found.labels[:samples]
    found.constant = [i for i in found.constant if i < samples]
    found.not_finite = [i for i in found.not_finite if i < samples]
    return found


def _named(x: Any) -> str:
    return f"shape {tuple(x.shape)}, {x.dtype}" if isinstance(x, Tensor) else repr(x)[:60]
