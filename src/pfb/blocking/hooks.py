"""What all hooks of a blocker have in common. No other file registers any that stay."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from pfb.blocking.gate import Gate


class _Inert:
    """What becomes of our hooks in a copied or unpickled model: nothing. The original alone is
    pruned.
    """

    _when_scripted = "a copy of a model with a pfb blocker cannot be scripted: copy it after detach()"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None

    def __getattr__(self, name: str) -> Any:
        """``torch.jit.script`` asks hooks for their ``__name__``, and prints the error."""
        raise AttributeError(self._when_scripted if name == "__name__" else name)


class Hook(_Inert):
    _when_scripted = "a model with a pfb blocker cannot be scripted: call blocker.detach() first"

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Inert, ())


def register(model: nn.Module, cut: nn.Module, enter: Hook, meet: Hook, leave: Hook) -> list[RemovableHandle]:
    """Register hooks for entering the model, meeting the cut and leaving the model."""
    return [
        model.register_forward_pre_hook(enter, with_kwargs=True),
        cut.register_forward_hook(meet, prepend=True),  # other hooks see the kept samples only
        model.register_forward_hook(leave, always_call=True),
    ]


def is_wired(model: nn.Module) -> bool:
    """Whether a blocker is attached to the model or to a part of it."""
    return any(isinstance(hook, Hook) for m in model.modules() for hook in m._forward_pre_hooks.values())
