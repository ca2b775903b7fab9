"""The two ways to stop samples inside a model, as hooks. No other file registers any.

``Reuse`` (the paper): the cut's forward hook returns the kept part of the cut's output, graph and
all. ``Recompute``: before the model runs, a pass without graph goes up to the cut, decides, and the
model's own inputs are selected, so that the forward proper sees the kept samples only.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pfb import tree
from pfb.features import batched_tensor
from pfb.forward import Reached, no_autocast_cache, scoring_mode
from pfb.gate import Gate
from pfb.replay import in_backward


@dataclass(frozen=True)
class Reuse:
    """One shallow pass, whose kept features go on: the paper's wiring, ``shallow="reuse"``."""

    name: ClassVar[Literal["reuse"]] = "reuse"

    def wire(self, model: nn.Module, cut: nn.Module, cut_name: str, gate: Gate) -> list[RemovableHandle]:
        """Register the hooks and return their handles."""
        return [
            model.register_forward_pre_hook(_Enter(gate, cut_name)),
            cut.register_forward_hook(_Stop(gate, cut_name), prepend=True),  # other hooks see the kept samples only
            model.register_forward_hook(_Leave(gate, cut_name), always_call=True),
        ]


@dataclass(frozen=True)
class Recompute:
    """A pass without graph scores, then the kept samples run from the input,
    ``shallow="recompute"``.

    Attributes:
        scale: resolution of the scoring pass as a part of the images', in (0, 1]: 0.5 makes it four
            times cheaper for convolutional nets, and coarser. Inputs without images are refused.
        dtype: ``torch.bfloat16`` or ``torch.float16`` to run the scoring pass under autocast where
            training itself does not.
        batchnorm: what BatchNorms normalise by in the scoring pass: ``"running"`` statistics, or
            those of the ``"batch"``. Running statistics move once per step either way.
        shared: names of the model's inputs that belong to the batch as a whole.

    Raises:
        ValueError, TypeError: a setting of another kind.

    Example:
        >>> import torch, pfb
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
        >>> blocker = pfb.attach(model, "0", 0.4, shallow=pfb.Recompute(dtype=torch.bfloat16))
    """

    name: ClassVar[Literal["recompute"]] = "recompute"
    scale: float = 1.0
    dtype: torch.dtype | None = None
    batchnorm: Literal["running", "batch"] = "running"
    shared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.scale, bool) or not isinstance(self.scale, (int, float)) or not 0 < self.scale <= 1:
            raise ValueError(f"`scale` must be a part of the images' resolution in (0, 1] (got {self.scale!r})")
        if self.dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"`dtype` must be torch.bfloat16, torch.float16 or None (got {self.dtype!r})")
        if self.batchnorm not in ("running", "batch"):
            raise ValueError(f'`batchnorm` must be "running" or "batch" (got {self.batchnorm!r})')
        if isinstance(self.shared, str):
            raise TypeError(f"`shared` must be a tuple of input names: write shared=({self.shared!r},)")
        object.__setattr__(self, "shared", tuple(self.shared))

    def wire(self, model: nn.Module, cut: nn.Module, cut_name: str, gate: Gate) -> list[RemovableHandle]:
        """Register the hooks and return their handles."""
        return [
            model.register_forward_pre_hook(_SelectInputs(gate, cut_name, self), with_kwargs=True),
            cut.register_forward_hook(_Catch(gate, cut_name), prepend=True),  # other hooks see the kept samples only
        ]


def wiring_named(shallow: str | Reuse | Recompute) -> Reuse | Recompute:
    """The wiring itself, or the one of this name with its default settings.

    Raises:
        ValueError: another name or kind of thing.
    """
    if isinstance(shallow, (Reuse, Recompute)):
        return shallow
    if shallow == "reuse":
        return Reuse()
    if shallow == "recompute":
        return Recompute()
    raise ValueError(
        f'`shallow` must be "reuse", "recompute", pfb.Reuse() or pfb.Recompute(...) with brackets (got {shallow!r})'
    )


def is_wired(model: nn.Module) -> bool:
    """Whether a blocker is attached to the model or to a part of it."""
    return any(isinstance(hook, _Hook) for m in model.modules() for hook in m._forward_pre_hooks.values())


class _Inert:
    """What becomes of our hooks in a copied or unpickled model: nothing. The original alone is
    pruned.
    """

    def __call__(self, *args: Any) -> None:
        return None


class _Hook:
    def __init__(self, gate: Gate, cut_name: str) -> None:
        self.gate, self.cut_name = gate, cut_name

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Inert, ())


class _Enter(_Hook):
    """Forward pre-hook on the model, for ``Reuse``."""

    def __call__(self, model: nn.Module, args: Any) -> None:
        self.gate.enter(model.training)


class _Leave(_Hook):
    """Forward hook on the model, for ``Reuse``; it also runs when the forward fails."""

    def __call__(self, model: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and output is None and self.gate.selection is not None:
            self._explain(sys.exc_info()[1])
        self.gate.leave()

    def _explain(self, error: BaseException | None) -> None:
        """The sizes in a layer's complaint do not tell where they come from."""
        if error is not None:
            error.add_note(
                f"pfb: samples were stopped at the cut {self.cut_name!r} before this. If the sizes clash, something "
                "bypasses the cut and still holds the whole batch (a skip connection, a mask, labels inside the "
                'forward, a remembered batch size): use pfb.attach(..., shallow="recompute"), which selects the '
                "inputs instead."
            )


class _Stop(_Hook):
    """Forward hook on the cut, for ``Reuse``."""

    def __call__(self, cut: nn.Module, args: Any, output: Any) -> Any:
        gate = self.gate
        _refuse_replica(cut)
        if in_backward():
            indices = gate.replay(output)
            return None if indices is None else self._kept(output, indices)
        if gate.meet_cut():
            raise RuntimeError(
                f"the cut {self.cut_name!r} ran twice in one forward, which would prune twice. Cut at a layer that "
                'runs once, use `shallow="recompute"`, and call the model itself rather than its parts.'
            )
        if not gate.armed:
            return gate.let_pass(output)
        return self._kept(output, gate.decide(output))

    def _kept(self, output: Any, indices: Tensor) -> Any:
        return tree.select(output, indices, batched_tensor(output).size(0), f"output of {self.cut_name}")


class _Catch(_Hook):
    """Forward hook on the cut, for ``Recompute``: ends the scoring pass there."""

    def __call__(self, cut: nn.Module, args: Any, output: Any) -> None:
        _refuse_replica(cut)
        self.gate.meet_cut()
        if self.gate.scoring:
            raise Reached(output)


class _SelectInputs(_Hook):
    """Forward pre-hook on the model, for ``Recompute``: score without graph, then keep the chosen
    inputs.
    """

    def __init__(self, gate: Gate, cut_name: str, settings: Recompute) -> None:
        super().__init__(gate, cut_name)
        self.settings = settings

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.gate.enter(model.training):
            return None
        if self.gate.reads == "nothing":
            output: Any = self._batched_input(model, args, kwargs)
            batch_size = output.size(0)
        else:
            output = self._scored(model, args, kwargs)
            batch_size = batched_tensor(output).size(0)
        indices = self.gate.replay(output) if in_backward() else self.gate.decide(output)
        return None if indices is None else self._selected(model, args, kwargs, indices, batch_size)

    def _scored(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        settings = self.settings
        if settings.scale < 1:
            args, kwargs = tree.shrink_images((args, kwargs), settings.scale)
        precision: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if settings.dtype is not None:
            precision = torch.autocast(next(tree.leaves((args, kwargs))).device.type, settings.dtype)
        mode = scoring_mode(model, settings.batchnorm == "batch")
        try:
            with self.gate.scoring_pass(), torch.no_grad(), no_autocast_cache(), mode, precision:
                model.forward(*args, **kwargs)
        except Reached as reached:
            return reached.args[0]
        except (AssertionError, RuntimeError) as error:
            if settings.scale == 1:
                raise
            raise RuntimeError(
                f"{type(model).__name__} does not run on images shrunk by `scale` (got {settings.scale}): {error}. "
                "Leave it at 1 for a model that takes images of one size."
            ) from error
        raise RuntimeError(f"the forward of {type(model).__name__} did not reach the cut {self.cut_name!r}")

    def _batched_input(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        shared = self.settings.shared
        names = _argument_names(model, len(args))
        inputs = [value for name, value in zip(names, args, strict=True) if name not in shared]
        inputs += [value for name, value in kwargs.items() if name not in shared]
        x = next((x for x in tree.leaves(inputs) if x.dim() > 0), None)
        if x is None:
            raise ValueError(f"the inputs of {type(model).__name__} hold no batch of tensors to select from")
        return x

    def _selected(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], indices: Tensor, batch_size: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        shared = self.settings.shared
        names = _argument_names(model, len(args)) if shared else [f"argument {i}" for i in range(len(args))]

        def keep(name: str, value: Any) -> Any:
            return value if name in shared else tree.select(value, indices, batch_size, f"input {name}")

        return (
            tuple(keep(name, value) for name, value in zip(names, args, strict=True)),
            {name: keep(name, value) for name, value in kwargs.items()},
        )


def _refuse_replica(cut: nn.Module) -> None:
    if getattr(cut, "_is_replica", False):
        raise RuntimeError("nn.DataParallel is not supported; use DistributedDataParallel, one process per device")


def _argument_names(model: nn.Module, n: int) -> list[str]:
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names + [f"argument {i}" for i in range(len(names), n)] if len(names) < n else names[:n]
