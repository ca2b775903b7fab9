"""The wiring that scores first: before the model runs, a pass without graph goes up to the cut and
decides, and the model's own inputs are selected, so that the forward proper sees the kept samples
only.
"""

from __future__ import annotations

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pfb.blocking.gate import Gate
from pfb.blocking.hooks import Hook, refuse_replica, register
from pfb.blocking.inputs import (
    argument_names,
    batched_places,
    batches_in,
    check_features,
    check_input,
    check_rows,
    checked_dim,
    checked_names,
    looks_flat,
    main_input,
    possible_rows,
)
from pfb.blocking.replay import in_backward
from pfb.features.cut import batched_tensor
from pfb.features.scoring_pass import Reached, scoring_mode
from pfb.features.side_effects import Trace, as_in_training
from pfb.features.sketch import are_images
from pfb.selection import nested as tree


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
        shared: names of the model's inputs that belong to the batch as a whole, or of entries of an
            input that is a dict.
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
        self, model: nn.Module, cut: nn.Module, cut_name: str, gate: Gate, doubt: str | None = None, dim: int = 0
    ) -> list[RemovableHandle]:
        """Register the hooks and return their handles. ``doubt``: see :func:`check_rows`; the cut's
        output has its samples in ``dim``.
        """
        enter = _SelectInputs(gate, cut_name, self, doubt)
        return register(model, cut, enter, _Catch(gate, cut_name, dim), _Leave(gate, cut_name))


class _Catch(Hook):
    """Forward hook on the cut, for ``Recompute``: ends the scoring pass there."""

    def __init__(self, gate: Gate, cut_name: str, dim: int) -> None:
        super().__init__(gate, cut_name)
        self.dim = dim

    def __call__(self, cut: nn.Module, args: Any, output: Any) -> None:
        refuse_replica(cut)
        gate = self.gate
        gate.meet_cut(training=True)
        if gate.scoring:
            raise Reached(output)
        if self.dim > 0 and gate.armed and not gate.scores and gate.latest is not None and not in_backward():
            check_rows(self.cut_name, batched_tensor(output), self.dim, gate.latest[:1], None)


class _Leave(Hook):
    """Forward hook on the model, for ``Recompute``; it also runs when the forward fails."""

    def __call__(self, model: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or output is not None or not self.gate.stopped_any:
            return
        if (error := sys.exc_info()[1]) is not None:
            error.add_note(
                "pfb: samples were stopped before this. If sizes or indices clash, an input that all samples share was "
                "selected by chance (name it in pfb.Recompute(shared=...)), or one holds row numbers of the whole "
                "batch, such as a permutation (draw them inside the forward)."
            )


class _SelectInputs(Hook):
    """Forward pre-hook on the model, for ``Recompute``: score without graph, then keep the chosen
    inputs.
    """

    def __init__(self, gate: Gate, cut_name: str, settings: Recompute, doubt: str | None) -> None:
        super().__init__(gate, cut_name)
        self.settings, self.trace, self.doubt = settings, Trace(), doubt
        self.told_apart: set[str] = set()  # inputs that were seen to be no flat targets
        self.has_items: dict[str, bool] = {}  # whether a list has one item per sample, once a batch has told

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        gate, shared = self.gate, self.settings.shared
        if not gate.enter(model.training):
            return None
        places = batched_places(model, args, kwargs, shared)
        if not places:
            raise ValueError(f"the inputs of {type(model).__name__} hold no batch of tensors to select from")
        (first, value), *others = places
        gate.look_at_input(batches_in(value)[0])
        by_item = False if isinstance(value, Tensor) else self.has_items.get(first)
        main = main_input(model, places)
        sight = None if in_backward() and not gate.reader.repeatable else gate.sight(main)
        if not gate.scores and self.doubt is not None:
            check_input(main, self.doubt)
        if sight is not None and not gate.decided_once:
            check_features(sight, main, self.settings.batch_dim)
        if gate.sees_input and not gate.reader.repeatable:
            output, batch_size = self._countable(main if are_images(main) else batches_in(main)[0])
        elif sight is not None:
            output, batch_size = sight.movedim(0, gate.reader.batch_dim), len(sight)
        elif gate.reads == "nothing" and by_item is not None:
            output, batch_size = self._countable(value if by_item else batches_in(value)[0])
        else:
            output = self._scored(model, args, kwargs)
            x, dim = batched_tensor(output), gate.reader.batch_dim
            check_rows(self.cut_name, x, dim, possible_rows(places, self.settings.batch_dim), self.doubt)
            batch_size = x.size(dim)
            if by_item is None and not torch.compiler.is_compiling():
                self.has_items[first] = len(value) == batch_size
        self._refuse_flat_targets(others, batch_size)
        indices = gate.replay(output) if in_backward() else gate.decide(output, sight)
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
                averaged = self.gate.reader.as_scored(model)
                with self.gate.scoring_pass(), torch.no_grad(), as_in_training(), mode, precision, averaged:
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
        behind = [key for key in keys if getattr(hooks[key], "sees_kept_samples", False)]
        later = [key for key in keys[keys.index(own) + 1 :] if key not in behind]
        for key in [own, *behind] if later else []:
            hooks.move_to_end(key)
        for key in later:
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
            if shared and isinstance(value, Mapping):
                return tree.rebuilt(value, [], [keep(str(place), inside) for place, inside in value.items()])
            return tree.select(value, indices, batch_size, f"input {name}", dim, self.gate.lists)

        names = argument_names(model, len(args))
        return (
            tuple(keep(name, value) for name, value in zip(names, args, strict=True)),
            {name: keep(name, value) for name, value in kwargs.items()},
        )
