"""Undo what a scoring pass writes to inputs, buffers and attributes of modules.

It runs the user's forward on the user's own objects. Inputs and buffers are copied always, which is
cheap beside a forward. Of attributes the first passes look at all, and from then on at those of the
modules in which any was seen to change.
"""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pfb.selection import nested as tree

FIRST_LOOKS = 3  # passes in which all modules are looked at; a cache may fill at the second only
OWN = {"training", "track_running_stats", "_parameters", "_buffers", "_modules"}
"""Attributes of a module that the pass itself sets, or that are looked at one by one."""
CONTAINERS = (dict, list, set, OrderedDict, defaultdict, Counter, deque)


class SideEffects:
    """What the scoring pass of one model writes."""

    def __init__(self) -> None:
        self._looks = 0
        self._written_modules: set[nn.Module] = set()

    @contextlib.contextmanager
    def undone(self, model: nn.Module, arguments: Any) -> Iterator[Any]:
        """Arguments for a pass inside this context, after which model and arguments are what they
        were.
        """
        first = self._looks < FIRST_LOOKS
        self._looks += 1
        looked_at = [m for m in model.modules() if not _is_lazy(m)]
        buffers = {m: [(name, x, _version(x), _copied(x)) for name, x in m._buffers.items()] for m in looked_at}
        modules = {m: _attributes(m) for m in (looked_at if first else self._written_modules)}
        try:
            yield tree.copied(arguments, lambda x: x.detach().clone().requires_grad_(x.requires_grad))
        finally:
            self._written_modules |= {m for m, before in modules.items() if _restore(m, before)}
            for m, before in buffers.items():
                _restore_buffers(m, before)


@contextlib.contextmanager
def as_in_training() -> Iterator[None]:
    """Switch off what PyTorch does only without gradients or in evaluation mode.

    The fused paths of attention layers (which turn padded batches into nested tensors), and caches
    that would keep what was computed without graph: of autocast and of parametrizations. Of the
    latter there is no public switch: ``parametrize._cache_enabled`` counts the open ``cached()``.
    """
    fast, cached = torch.backends.mha.get_fastpath_enabled(), torch.is_autocast_cache_enabled()
    parametrized = parametrize._cache_enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_autocast_cache_enabled(False)
    parametrize._cache_enabled = 0
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.set_autocast_cache_enabled(cached)
        parametrize._cache_enabled = parametrized
        if cached:
            torch.clear_autocast_cache()  # an autocast inside the model has switched the cache on again


def _is_lazy(m: nn.Module) -> bool:
    """Whether its first forward makes its parameters, which must stay."""
    return isinstance(m, nn.modules.lazy.LazyModuleMixin) and m.has_uninitialized_params()


def _version(x: Tensor | None) -> int:
    return 0 if x is None or x.is_inference() else x._version


def _copied(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone()


@torch.no_grad()
def _restore_buffers(m: nn.Module, before: list[tuple[str, Tensor | None, int, Tensor | None]]) -> None:
    """Put buffers back, and what they held."""
    for name in m._buffers.keys() - {name for name, *_ in before}:
        del m._buffers[name]
    for name, x, version, saved in before:
        if m._buffers.get(name) is not x:
            m._buffers[name] = x
        if x is not None and saved is not None and _version(x) != version:
            x.copy_(saved)


def _attributes(m: nn.Module) -> dict[str, Any]:
    """Attributes, hooks among them, and copies of the containers in them."""
    return {name: (value, _contents(value)) for name, value in m.__dict__.items() if name not in OWN}


def _contents(value: Any) -> list[tuple[Any, Any]]:
    """A container and those inside it, each with a copy."""
    found: list[tuple[Any, Any]] = []
    known: set[int] = set()
    unseen = [value]
    while unseen:
        part = unseen.pop()
        if type(part) in CONTAINERS and id(part) not in known:
            known.add(id(part))
            found.append((part, part.copy()))
            unseen += part.values() if isinstance(part, dict) else part
    return found


def _restore(m: nn.Module, before: dict[str, Any]) -> bool:
    """Put attributes back; whether any had changed."""
    changed = False
    for name in m.__dict__.keys() - before.keys() - OWN:
        del m.__dict__[name]
        changed = True
    for name, (value, contents) in before.items():
        if m.__dict__.get(name, before) is not value:
            m.__dict__[name] = value
            changed = True
        for part, content in contents:
            if not _same(part, content):
                part.clear()
                part.extend(content) if isinstance(part, (list, deque)) else part.update(content)
                changed = True
    return changed


def _same(a: Any, b: Any) -> bool:
    """Whether two containers of one kind hold the same objects; tensors must not be compared by
    value.
    """
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(k in b and b[k] is v for k, v in a.items())
    if isinstance(a, set):
        return {id(v) for v in a} == {id(v) for v in b}
    return all(x is y for x, y in zip(a, b, strict=True))
