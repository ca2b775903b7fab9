"""The two ways to stop samples inside a model, as hooks. No other file registers any.

``Reuse`` (the paper): the cut's forward hook returns the kept part of the cut's output, graph and
all. ``Recompute``: before the model runs, a pass without graph goes up to the cut, decides, and the
model's own inputs are selected, so that the forward proper sees the kept samples only.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pfb import tree
from pfb.features import batched_tensor
from pfb.forward import Reached, scoring_mode
from pfb.gate import Gate
from pfb.inputs import (
    argument_names,
    batched_places,
    check_rows,
    checked_dim,
    checked_names,
    looks_flat,
    possible_rows,
)
from pfb.replay import in_backward
from pfb.trace import Trace, as_in_training


@dataclass(frozen=True)
class Reuse:
    """One shallow pass, whose kept features go on: the paper's wiring, ``shallow="reuse"``.

    Attributes:
        shared: names of inputs, beside the one that the cut sees, of which nothing after the cut
            takes rows. Any other is refused: it would be paired with the wrong samples.

    Raises:
        TypeError: ``shared`` is one name instead of a tuple.
    """

    name: ClassVar[Literal["reuse"]] = "reuse"
    shared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shared", checked_names(self.shared))

    def wire(
        self, model: nn.Module, cut: nn.Module, cut_name: str, gate: Gate, doubt: str | None = None
    ) -> list[RemovableHandle]:
        """Register the hooks and return their handles. ``doubt``: see :func:`check_rows`."""
        enter = _Enter(gate, cut_name, self.shared)
        return [
            model.register_forward_pre_hook(enter, with_kwargs=True),
            # Other hooks see the kept samples only.
            cut.register_forward_hook(_Stop(gate, cut_name, enter, doubt), prepend=True),
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
        batch_dim: where the model's inputs have their samples: 1 for sequences ``[T, N, C]``.

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
    batch_dim: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.scale, bool) or not isinstance(self.scale, (int, float)) or not 0 < self.scale <= 1:
            raise ValueError(f"`scale` must be a part of the images' resolution in (0, 1] (got {self.scale!r})")
        if self.dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"`dtype` must be torch.bfloat16, torch.float16 or None (got {self.dtype!r})")
        if self.batchnorm not in ("running", "batch"):
            raise ValueError(f'`batchnorm` must be "running" or "batch" (got {self.batchnorm!r})')
        object.__setattr__(self, "shared", checked_names(self.shared))
        object.__setattr__(self, "batch_dim", checked_dim(self.batch_dim))

    def wire(
        self, model: nn.Module, cut: nn.Module, cut_name: str, gate: Gate, doubt: str | None = None
    ) -> list[RemovableHandle]:
        """Register the hooks and return their handles. ``doubt``: see :func:`check_rows`."""
        return [
            model.register_forward_pre_hook(_SelectInputs(gate, cut_name, self, doubt), with_kwargs=True),
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

    def __getattr__(self, name: str) -> Any:
        if name == "__name__":  # torch.jit.script asks for it, and prints this
            raise AttributeError("a model with a pfb blocker cannot be scripted: call blocker.detach() first")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class _Enter(_Hook):
    """Forward pre-hook on the model, for ``Reuse``."""

    def __init__(self, gate: Gate, cut_name: str, shared: tuple[str, ...]) -> None:
        super().__init__(gate, cut_name)
        self.shared = shared
        self.model: weakref.ref[nn.Module] | None = None
        self.rows: tuple[int, ...] = ()  # what the batch's size may be, by the model's input

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            self.model = weakref.ref(model)
        if not self.gate.enter(model.training):
            return
        places = batched_places(model, args, kwargs, self.shared)
        self.rows = possible_rows(places, self.gate.reader.batch_dim)
        if len(places) > 1:
            (first, _), (second, _), *_ = places
            raise ValueError(
                f"{type(model).__name__} takes {second!r} beside {first!r}, and with reuse it still holds the whole batch "
                'after the cut, where it would be paired with the wrong samples. Use shallow="recompute", which selects '
                f"both; or name it in pfb.Reuse(shared=({second!r},)) if nothing after the cut takes rows of it."
            )
        for _, value in places:
            self.gate.look_at_input(next(tree.leaves(value)))

    def training(self) -> bool:
        """Whether the model that was entered last still trains."""
        model = None if self.model is None else self.model()
        return model is None or model.training


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

    def __init__(self, gate: Gate, cut_name: str, enter: _Enter, doubt: str | None) -> None:
        super().__init__(gate, cut_name)
        self.enter, self.doubt = enter, doubt

    def __call__(self, cut: nn.Module, args: Any, output: Any) -> Any:
        gate = self.gate
        _refuse_replica(cut)
        if in_backward():
            indices = gate.replay(output)
            return None if indices is None else self._kept(output, indices)
        if gate.meet_cut(self.enter.training()):
            raise RuntimeError(
                f"the cut {self.cut_name!r} ran twice in one forward, which would prune twice. Cut at a layer that "
                'runs once, use `shallow="recompute"`, and call the model itself rather than its parts.'
            )
        if not gate.armed:
            return gate.let_pass(output)
        check_rows(self.cut_name, batched_tensor(output), gate.reader.batch_dim, self.enter.rows, self.doubt)
        return self._kept(output, gate.decide(output))

    def _kept(self, output: Any, indices: Tensor) -> Any:
        dim = self.gate.reader.batch_dim
        n = batched_tensor(output).size(dim)
        return tree.select(output, indices, n, f"output of {self.cut_name}", dim, self.gate.lists)


class _Catch(_Hook):
    """Forward hook on the cut, for ``Recompute``: ends the scoring pass there."""

    def __call__(self, cut: nn.Module, args: Any, output: Any) -> None:
        _refuse_replica(cut)
        self.gate.meet_cut(training=True)
        if self.gate.scoring:
            raise Reached(output)


class _SelectInputs(_Hook):
    """Forward pre-hook on the model, for ``Recompute``: score without graph, then keep the chosen
    inputs.
    """

    def __init__(self, gate: Gate, cut_name: str, settings: Recompute, doubt: str | None) -> None:
        super().__init__(gate, cut_name)
        self.settings, self.trace, self.doubt = settings, Trace(), doubt
        self.told_apart: set[str] = set()  # inputs that were seen to be no flat targets

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        gate, shared = self.gate, self.settings.shared
        if not gate.enter(model.training):
            return None
        places = batched_places(model, args, kwargs, shared)
        if not places:
            raise ValueError(f"the inputs of {type(model).__name__} hold no batch of tensors to select from")
        gate.look_at_input(next(tree.leaves(places[0][1])))
        if gate.reads == "nothing":
            output, batch_size = self._countable(places[0][1])
        else:
            output = self._scored(model, args, kwargs)
            x, dim = batched_tensor(output), gate.reader.batch_dim
            check_rows(self.cut_name, x, dim, possible_rows(places, self.settings.batch_dim), self.doubt)
            batch_size = x.size(dim)
        self._refuse_flat_targets(places[1:], batch_size)
        indices = gate.replay(output) if in_backward() else gate.decide(output)
        return None if indices is None else self._selected(model, args, kwargs, indices, batch_size)

    def _countable(self, value: Any) -> tuple[Tensor, int]:
        """Of the model's first input, something with as many rows as samples where the cut's output
        would have them: all that a rule needs which reads nothing.
        """
        if not isinstance(value, Tensor):  # one item per sample
            value = torch.stack([next(tree.leaves(item)).float().mean() for item in value])
        value = value[:, None] if value.dim() == 1 else value
        dim = self.settings.batch_dim
        return value.movedim(dim, self.gate.reader.batch_dim), value.size(dim)

    def _scored(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        settings = self.settings
        precision: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if settings.dtype is not None:
            precision = torch.autocast(next(tree.leaves((args, kwargs))).device.type, settings.dtype)
        mode = scoring_mode(model, settings.batchnorm == "batch")
        with self.trace.taken_back(model, (args, kwargs)) as (args, kwargs):
            if settings.scale < 1:
                args, kwargs = tree.shrink_images((args, kwargs), settings.scale)
            try:
                with self.gate.scoring_pass(), torch.no_grad(), as_in_training(), mode, precision:
                    args, kwargs = self._with_later_hooks(model, args, kwargs)
                    model.forward(*args, **kwargs)
            except Reached as reached:
                return reached.args[0]
            except Exception as error:
                error.add_note(
                    f"pfb: this is the scoring pass of recompute: {type(model).__name__} on the whole batch, without "
                    "gradients and in evaluation mode, up to the cut."
                )
                if settings.scale < 1 and isinstance(error, (AssertionError, RuntimeError)):
                    raise RuntimeError(
                        f"{type(model).__name__} does not run on images shrunk by `scale` (got {settings.scale}): "
                        f"{error}. Leave it at 1 for a model that takes images of one size."
                    ) from error
                raise
        raise RuntimeError(f"the forward of {type(model).__name__} did not reach the cut {self.cut_name!r}")

    def _with_later_hooks(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the model's pre-hooks make of its inputs that were registered after this one; from
        the next forward on they run before it.
        """
        if torch.compiler.is_compiling():
            return args, kwargs
        hooks = cast("OrderedDict[int, Any]", model._forward_pre_hooks)
        keys = list(hooks)
        own = next(key for key in keys if hooks[key] is self)
        later = [key for key in keys[keys.index(own) + 1 :] if not getattr(hooks[key], "sees_kept_samples", False)]
        for key in later:
            hooks.move_to_end(own)
            if key in model._forward_pre_hooks_with_kwargs:
                changed = hooks[key](model, args, kwargs)
                args, kwargs = (args, kwargs) if changed is None else changed
            else:
                changed = hooks[key](model, args)
                args = args if changed is None else changed if isinstance(changed, tuple) else (changed,)
        return args, kwargs

    def _refuse_flat_targets(self, places: list[tuple[str, Any]], batch_size: int) -> None:
        """Once per input, since the host has to wait for it."""
        if torch.compiler.is_compiling():
            return
        for name, value in places:
            if name not in self.told_apart and looks_flat(value, batch_size):
                raise ValueError(
                    f"the input {name!r} of shape {tuple(value.shape)} looks like a flat list of targets whose first "
                    "column counts the images of the batch: selecting its rows would pair them with the wrong images. "
                    "Pass one tensor per image in a list, or compute the loss outside the model with `blocker.select`."
                )
            self.told_apart.add(name)

    def _selected(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], indices: Tensor, batch_size: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        shared, dim = self.settings.shared, self.settings.batch_dim

        def keep(name: str, value: Any) -> Any:
            if name in shared:
                return value
            return tree.select(value, indices, batch_size, f"input {name}", dim, self.gate.lists)

        names = argument_names(model, len(args))
        return (
            tuple(keep(name, value) for name, value in zip(names, args, strict=True)),
            {name: keep(name, value) for name, value in kwargs.items()},
        )


def _refuse_replica(cut: nn.Module) -> None:
    if getattr(cut, "_is_replica", False):
        raise RuntimeError("nn.DataParallel is not supported; use DistributedDataParallel, one process per device")
