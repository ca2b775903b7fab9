"""A loader whose batches are pruned: one line before the training loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pfb.pruning.batch_pruner import BatchPruner
from pfb.pruning.filling import Pool
from pfb.selection.nested import DESCEND, children, mapped
from pfb.selection.schedule import Schedule
from pfb.selection.select import is_tensordict
from pfb.selection.selection import keep_count
from pfb.utils import distributed as sync


class PrunedLoader:
    """What :func:`prune_batches` returns: iterate it as the loader it wraps, whose attributes it
    has.

    Attributes:
        loader: what is wrapped.
        pruner: the :class:`pfb.BatchPruner` that its batches pass; pause it, read its ``stats``.
    """

    def __init__(self, loader: Any, pruner: BatchPruner, fill: bool, device: torch.device | None) -> None:
        self.loader, self.pruner = loader, pruner
        self._device = device
        self._pool = Pool(pruner.declared, pruner._lists) if fill else None
        self._skip = 0  # batches that an interrupted epoch had given before, when it is resumed
        self._given = 0  # batches taken from the loader in this epoch
        self._open: list[list[int]] = []  # of each iteration that is under way, one inside the other

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        given, self._skip = [self._skip], 0
        self._open.append(given)
        try:
            for batch in itertools.islice(batches, given[0], None):
                given[0] += 1
                self._given = given[0]
                if self._device is not None:
                    batch = mapped(batch, self._moved)
                if self._pool is None or self.pruner._is_paused:
                    yield self.pruner(batch)
                else:
                    kept = self.pruner(batch)
                    n, k = self.pruner.latest_sizes(batch)
                    yield from self._pool.add(kept, k, n)
            self._given = 0
        finally:
            self._open = [others for others in self._open if others is not given]
            if self._open:
                self._given = self._open[-1][0]

    def _moved(self, x: Any, path: str) -> Any:
        if isinstance(x, Tensor):
            return x.to(self._device, non_blocking=True)
        if children(x) is not None and not is_tensordict(x):
            return DESCEND
        return x.to(self._device) if callable(getattr(x, "to", None)) else x

    def __len__(self) -> int:
        """Batches of the coming epoch; with ``fill`` those that will be full, exactly.

        Raises:
            TypeError: the wrapped loader has no length; or, with ``fill``, the sizes of its batches
                cannot be told (no ``batch_size`` and data set).
        """
        batches = len(self.loader)
        if self._pool is None or self.pruner._is_paused:
            return batches
        sizes = batch_sizes(self.loader, batches)
        views, rows = self.pruner.views.count, (self._pool.size or sizes[0]) / sizes[0] if sizes else 1
        sizes = [round(n * rows) for n in sizes]  # a collate function may make several rows of a sample
        kept = [views * keep_count(n // views, self.pruner.share_after(i)) for i, n in enumerate(sizes)]
        return (self._pool.held + sum(kept)) // (self._pool.size or sizes[0]) if sizes else 0

    def __getattr__(self, name: str) -> Any:
        if name in ("loader", "__setstate__") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.loader, name)

    def set_epoch(self, epoch: int) -> None:
        """Tell the loader, or its sampler or data set, which epoch begins."""
        batches, samples, data = (getattr(self.loader, name, None) for name in ("batch_sampler", "sampler", "dataset"))
        places: tuple[Any, ...] = (self.loader, batches, samples, getattr(batches, "sampler", None), data)
        for place in places:
            if hasattr(place, "set_epoch"):
                place.set_epoch(epoch)
                return

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, in the middle of an epoch, too: the pruner's state, how
        many batches this epoch has taken, samples held back with ``fill``, and the loader's own
        state, if it has one. After a ``break``, an epoch that is over must be marked as such:
        ``state["batches"] = 0``. With ``fill``, samples held back differ by rank: save on each.
        """
        try:
            own = self.loader.state_dict()
        except AttributeError:  # Accelerate's has the method, and none of a plain DataLoader
            own = None
        held = None if self._pool is None else self._pool.state_dict()
        return {
            "pruner": self.pruner.state_dict(),
            "batches": self._given,
            "samples": self._samples_of_a_step(),
            "held": held,
            "loader": own,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken: a loader without a state of its own gives the batches
        of that epoch again, in the same order (seed its generator, ``set_epoch``), and those that
        had been given are skipped.

        Raises:
            ValueError: not a state of a pruned loader, with another ``fill``, of the middle of an
                epoch with other batches, or damaged. Nothing is changed then, nor if the loader
                refuses its own part.
        """
        if not isinstance(state, dict) or not state.keys() >= {"pruner", "batches", "held", "loader"}:
            raise ValueError("this is not a state of pfb.prune_batches: pass what its `state_dict()` returned")
        if (state["held"] is None) != (self._pool is None):
            raise ValueError(
                f"the state was saved with fill={state['held'] is not None}: make the loader with the same"
            )
        if type(state["batches"]) is not int or state["batches"] < 0:
            raise ValueError(f"the state's `batches` must be a whole number >= 0 (got {state['batches']!r})")
        loads = state["loader"] is not None and hasattr(self.loader, "load_state_dict")
        before, now = state.get("samples"), self._samples_of_a_step()
        if state["batches"] and not loads and None not in (before, now) and before != now:
            raise ValueError(
                f"the state was saved after {state['batches']} batches, of {before} samples over all ranks, and they "
                f"have {now} now, so that others would be skipped: resume with the same, or at an epoch's end"
            )
        pool = None if self._pool is None else Pool(self.pruner.declared, self.pruner._lists)
        pruner = self.pruner.state_dict()
        self.pruner.load_state_dict(state["pruner"])
        try:
            if pool is not None:
                pool.load_state_dict(state["held"])
            if loads:
                self.loader.load_state_dict(state["loader"])
        except Exception:
            self.pruner.load_state_dict(pruner)
            raise
        self._pool, self._skip = pool, 0 if loads else state["batches"]

    def _samples_of_a_step(self) -> int | None:
        """Of the batches of all ranks, before pruning; ``None`` where the loader does not tell."""
        size = _batch_size(self.loader)
        with sync.among(self.pruner.group):
            return None if size is None else size * sync.world_size()

    def __repr__(self) -> str:
        return f"PrunedLoader({type(self.loader).__name__}, {self.pruner!r}, fill={self._pool is not None})"


def prune_batches(
    loader: Iterable[Any],
    prune: float | Schedule | None = None,
    *,
    fill: bool = False,
    device: torch.device | str | None = None,
    pruner: BatchPruner | None = None,
    **settings: Any,
) -> PrunedLoader:
    """Each batch of a loader without the samples that resemble others seen lately.

    Args:
        loader: any iterable of batches: a DataLoader, Accelerate's, timm's, webdataset's, a Hugging
            Face data set's. Its length, attributes and ``set_epoch`` are those of what is returned.
        prune: share of each batch that is left out, in [0, 1), by default 0.5, or
            :func:`pfb.window`.
        fill: gather what is kept until a batch has its full size again: constant batches and cost
            of a step, ``1 - prune`` times as many steps, as many on all ranks. What does not fill a
            batch at an epoch's end opens the next epoch.
        device: move each batch there before it is judged: tensors in tuples, lists, dicts and
            dataclasses, and what else has a method ``to``.
        pruner: a :class:`pfb.BatchPruner` of your own, in place of ``prune`` and its settings.
        settings: of :class:`pfb.BatchPruner`: ``rule``, ``features``, ``density``, ``total_steps``,
            ``views``, ``seed``, ``group``, ``shared``, ``items``, ``dims``, ``on_left_out``.

    Raises:
        TypeError, ValueError: as :class:`pfb.BatchPruner`; or the loader cannot be iterated.

    Example:
        >>> import torch, pfb
        >>> data = torch.utils.data.TensorDataset(torch.randn(100, 3, 8, 8), torch.arange(100))
        >>> loader = torch.utils.data.DataLoader(data, batch_size=10)
        >>> pruned = pfb.prune_batches(loader, prune=0.5)
        >>> len(pruned), {len(x) for x, y in pruned}
        (10, {5})
        >>> full = pfb.prune_batches(loader, prune=0.5, fill=True)
        >>> len(full), {len(x) for x, y in full}
        (5, {10})
    """
    if isinstance(loader, PrunedLoader):
        raise TypeError("this loader is pruned already, and would be pruned twice; wrap the plain one")
    if not hasattr(loader, "__iter__"):
        raise TypeError(f"`loader` must be an iterable of batches (got {type(loader).__name__})")
    if isinstance(loader, Iterator):
        raise TypeError("`loader` is an iterator, which ends after one epoch: pass the loader itself")
    if pruner is None:
        pruner = BatchPruner(0.5 if prune is None else prune, **settings)
    elif settings or prune is not None:
        raise TypeError("`pruner` has its own settings: leave out `prune` and the others, or `pruner`")
    if fill and pruner.views.count > 1 and not pruner.views.interleaved:
        raise ValueError(
            "`fill=True` cannot keep stacked views together (row i and i + N / 2): give them side by side, "
            "views=pfb.Views(2, interleaved=True)"
        )
    wrapped = PrunedLoader(loader, pruner, bool(fill), None if device is None else torch.device(device))
    _tell_epoch(loader, pruner)
    return wrapped


def batch_sizes(loader: Any, batches: int) -> list[int]:
    """How many samples each batch of an epoch holds.

    Raises:
        TypeError: that cannot be told.
    """
    sampler: Any = getattr(loader, "batch_sampler", None)
    size = _batch_size(loader)
    order = getattr(sampler, "sampler", None) or getattr(loader, "sampler", None)
    drops = getattr(sampler, "drop_last", getattr(loader, "drop_last", False))
    try:
        samples = len(order) if order is not None else len(loader.dataset)
    except (TypeError, AttributeError):
        samples = None
    if size is None or samples is None:
        raise TypeError(
            "the length with `fill=True` needs a loader that knows its data set and batch size: leave `fill` out, or "
            "count the batches of an epoch yourself"
        )
    if getattr(sampler, "split_batches", False) and getattr(sampler, "even_batches", False):  # Accelerate's
        return [size // sampler.num_processes] * batches
    if drops:
        return [size] * batches
    return [min(size, max(0, samples - i * size)) or size for i in range(batches)]


def _batch_size(loader: Any) -> int | None:
    """Samples of a batch, if the loader or its batch sampler tells."""
    return getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)


def _tell_epoch(loader: Any, pruner: BatchPruner) -> None:
    """Tell a memory how many samples an epoch has, where the loader knows."""
    order = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    if getattr(pruner.density, "epoch", 0) is not None or getattr(order, "replacement", False):
        return  # of a draw with replacement nobody knows how many different samples it has
    try:
        sizes = batch_sizes(loader, len(loader))
    except (TypeError, NotImplementedError):
        return
    with sync.among(pruner.group):
        pruner.density.epoch = max(1, sum(sizes) * sync.world_size() // pruner.views.count)
