"""The two ways to stop samples inside a model, as hooks. No other file registers any.

``reuse`` (the paper): the cut's forward hook returns the kept part of the cut's output, graph and
all. ``recompute``: before the model runs, a pass without graph goes up to the cut, decides, and the
model's own inputs are selected, so that the forward proper sees the kept samples only.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pfb import tree
from pfb.features import batched_tensor, leaves
from pfb.forward import Reached, no_autocast_cache, scoring_mode
from pfb.gate import Gate, in_backward


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
    """Forward pre-hook on the model, for ``reuse``."""

    def __call__(self, model: nn.Module, args: Any) -> None:
        self.gate.enter(model.training)


class _Leave(_Hook):
    """Forward hook on the model, for ``reuse``; it also runs when the forward fails."""

    def __call__(self, model: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and output is None and self.gate.selection is not None:
            self._explain(sys.exc_info()[1])
        self.gate.leave()

    def _explain(self, error: BaseException | None) -> None:
        """The sizes in a layer's complaint do not tell where they come from."""
        if error is not None:
            error.add_note(
                f"pfb: samples were stopped at the cut {self.cut_name!r} before this. If the sizes clash, something "
                "bypasses the cut and still holds the whole batch (a skip connection, a mask, labels inside the forward, "
                'a remembered batch size): use pfb.attach(..., shallow="recompute"), which selects the inputs instead.'
            )


class _Stop(_Hook):
    """Forward hook on the cut, for ``reuse``."""

    def __call__(self, cut: nn.Module, args: Any, output: Any) -> Any:
        gate = self.gate
        if getattr(cut, "_is_replica", False):
            raise RuntimeError("nn.DataParallel is not supported; use DistributedDataParallel, one process per device")
        if in_backward():
            indices = gate.replay(output)
            return None if indices is None else self._kept(output, indices)
        gate.reached = True
        if not gate.armed:
            return gate.let_pass(output)
        if gate.passed:
            raise RuntimeError(
                f"the cut {self.cut_name!r} ran twice in one forward, which would prune twice. Cut at a layer that runs "
                'once, use `shallow="recompute"`, and call the model itself rather than its parts.'
            )
        gate.passed = True
        return self._kept(output, gate.decide(output))

    def _kept(self, output: Any, indices: Tensor) -> Any:
        return tree.select(output, indices, batched_tensor(output).size(0), f"output of {self.cut_name}")


class _Catch(_Hook):
    """Forward hook on the cut, for ``recompute``: ends the scoring pass there."""

    def __call__(self, cut: nn.Module, args: Any, output: Any) -> None:
        if getattr(cut, "_is_replica", False):
            raise RuntimeError("nn.DataParallel is not supported; use DistributedDataParallel, one process per device")
        self.gate.reached = True
        if self.gate.scoring:
            raise Reached(output)


class _SelectInputs(_Hook):
    """Forward pre-hook on the model, for ``recompute``: score without graph, then keep the chosen
    inputs.
    """

    def __init__(
        self,
        gate: Gate,
        cut_name: str,
        batch_statistics: bool,
        scale: float,
        dtype: torch.dtype | None,
        shared: tuple[str, ...],
    ) -> None:
        super().__init__(gate, cut_name)
        self.batch_statistics, self.scale, self.dtype, self.shared = batch_statistics, scale, dtype, shared

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.gate.enter(model.training):
            return None
        if self.gate.reads_features:
            output = self._scored(model, args, kwargs)
            batch_size = batched_tensor(output).size(0)
        else:
            output = self._batched_input(model, args, kwargs)
            batch_size = output.size(0)
        indices = self.gate.replay(output) if in_backward() else self.gate.decide(output)
        return None if indices is None else self._selected(model, args, kwargs, indices, batch_size)

    def _scored(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.gate.scoring = True
        if self.scale < 1:
            args, kwargs = tree.shrink_images((args, kwargs), self.scale)
        precision: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self.dtype is not None:
            precision = torch.autocast(next(leaves((args, kwargs))).device.type, self.dtype)
        try:
            with torch.no_grad(), no_autocast_cache(), scoring_mode(model, self.batch_statistics), precision:
                model.forward(*args, **kwargs)
        except Reached as reached:
            return reached.args[0]
        except (AssertionError, RuntimeError) as error:
            if self.scale == 1:
                raise
            raise RuntimeError(
                f"{type(model).__name__} does not run on images shrunk by `scoring_scale` (got {self.scale}): {error}. "
                "Leave it at 1 for a model that takes images of one size."
            ) from error
        finally:
            self.gate.scoring = False
        raise RuntimeError(f"the forward of {type(model).__name__} did not reach the cut {self.cut_name!r}")

    def _batched_input(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        names = _argument_names(model, len(args))
        inputs = [value for name, value in zip(names, args, strict=True) if name not in self.shared]
        inputs += [value for name, value in kwargs.items() if name not in self.shared]
        x = next((x for x in leaves(inputs) if x.dim() > 0), None)
        if x is None:
            raise ValueError(f"the inputs of {type(model).__name__} hold no batch of tensors to select from")
        return x

    def _selected(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], indices: Tensor, batch_size: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = _argument_names(model, len(args)) if self.shared else [f"argument {i}" for i in range(len(args))]

        def keep(name: str, value: Any) -> Any:
            return value if name in self.shared else tree.select(value, indices, batch_size, f"input {name}")

        return (
            tuple(keep(name, value) for name, value in zip(names, args, strict=True)),
            {name: keep(name, value) for name, value in kwargs.items()},
        )


def wire_reuse(model: nn.Module, cut: nn.Module, cut_name: str, gate: Gate) -> list[RemovableHandle]:
    """Register the hooks of ``reuse`` and return their handles."""
    return [
        model.register_forward_pre_hook(_Enter(gate, cut_name)),
        cut.register_forward_hook(_Stop(gate, cut_name), prepend=True),  # other hooks see the kept samples only
        model.register_forward_hook(_Leave(gate, cut_name), always_call=True),
    ]


def wire_recompute(
    model: nn.Module,
    cut: nn.Module,
    cut_name: str,
    gate: Gate,
    batch_statistics: bool,
    scale: float,
    dtype: torch.dtype | None,
    shared: tuple[str, ...],
) -> list[RemovableHandle]:
    """Register the hooks of ``recompute`` and return their handles."""
    select_inputs = _SelectInputs(gate, cut_name, batch_statistics, scale, dtype, shared)
    return [
        model.register_forward_pre_hook(select_inputs, with_kwargs=True),
        cut.register_forward_hook(_Catch(gate, cut_name), prepend=True),  # other hooks see the kept samples only
    ]


def is_wired(model: nn.Module) -> bool:
    """Whether a blocker is attached to the model or to a part of it."""
    return any(isinstance(hook, _Hook) for m in model.modules() for hook in m._forward_pre_hooks.values())


def _argument_names(model: nn.Module, n: int) -> list[str]:
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names + [f"argument {i}" for i in range(len(names), n)] if len(names) < n else names[:n]
