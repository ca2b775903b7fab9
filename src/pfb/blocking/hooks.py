"""What all hooks of a blocker have in common. No other file registers any that stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from pfb.blocking.gate import Gate


class _Inert:
    """What becomes of our hooks in a copied or unpickled model: nothing. The original alone is
    pruned.
    """

    def __call__(self, *args: Any) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        raise _no_such(self, name, "a copy of a model with a pfb blocker cannot be scripted: copy it after detach()")


class Hook:
    def __init__(self, gate: Gate, cut_name: str) -> None:
        self.gate, self.cut_name = gate, cut_name

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Inert, ())

    def __getattr__(self, name: str) -> Any:
        raise _no_such(self, name, "a model with a pfb blocker cannot be scripted: call blocker.detach() first")


def _no_such(hook: object, name: str, when_scripted: str) -> AttributeError:
    """``torch.jit.script`` asks hooks for their ``__name__``, and prints the error."""
    usual = f"{type(hook).__name__!r} object has no attribute {name!r}"
    return AttributeError(when_scripted if name == "__name__" else usual)


def register(
    model: nn.Module,
    cut: nn.Module,
    enter: Callable[..., Any],
    meet: Callable[..., Any],
    leave: Callable[..., Any] | None = None,
) -> list[RemovableHandle]:
    """Register hooks for entering the model, meeting the cut and leaving the model."""
    handles = [
        model.register_forward_pre_hook(enter, with_kwargs=True),
        cut.register_forward_hook(meet, prepend=True),  # other hooks see the kept samples only
    ]
    if leave is not None:
        handles.append(model.register_forward_hook(leave, always_call=True))
    return handles


def is_wired(model: nn.Module) -> bool:
    """Whether a blocker is attached to the model or to a part of it."""
    return any(isinstance(hook, Hook) for m in model.modules() for hook in m._forward_pre_hooks.values())


def refuse_replica(cut: nn.Module) -> None:
    if getattr(cut, "_is_replica", False):
        raise RuntimeError("nn.DataParallel is not supported; use DistributedDataParallel, one process per device")


def remove(handles: list[RemovableHandle]) -> None:
    """Take all of these hooks away."""
    for handle in handles:
        handle.remove()
