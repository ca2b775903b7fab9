"""Stop samples at a cut: its forward hook returns the kept part of the cut's output, graph and
all, so that the shallow pass is reused.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pfb.blocking.gate import Gate
from pfb.blocking.hooks import Hook, register
from pfb.blocking.inputs import batches_in, check_rows, holds_batches, places_of, possible_rows
from pfb.blocking.replay import in_backward
from pfb.features.cut import batched_tensor
from pfb.selection.select import select


def before(cut: str) -> str:
    """What prunes before the model, where something bypasses the cut."""
    return f"pfb.BatchPruner(features=pfb.Shallow(model, {cut!r}), rule=pfb.RareFirst())"


def wire(
    model: nn.Module, cut: nn.Module, gate: Gate, shared: tuple[str, ...], doubt: str | None
) -> list[RemovableHandle]:
    """Register the hooks and return their handles.

    Args:
        model, cut: where.
        gate: what decides.
        shared: names of inputs, beside the one that the cut sees, of which nothing after the cut
            takes rows.
        doubt: see :func:`~pfb.blocking.inputs.check_rows`.
    """
    enter = _Enter(gate, shared)
    return register(model, cut, enter, _Stop(gate, enter, doubt), _Leave(gate))


class _Enter(Hook):
    """Forward pre-hook on the model, for ``Reuse``."""

    def __init__(self, gate: Gate, shared: tuple[str, ...]) -> None:
        super().__init__(gate)
        self.shared = shared
        self.model: weakref.ref[nn.Module] | None = None
        self.rows: tuple[int, ...] = ()  # what the batch's size may be, by the model's input
        self.lists: list[tuple[str, int]] = []  # inputs that may have one item per sample, and their lengths
        self.batches: tuple[str, int] | None = None  # a list, its length, that may hold several batches
        self.of_all: set[str] = set()  # lists that were seen to be of another length than a batch

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            self.model = weakref.ref(model)
        if not self.gate.enter(model.training):
            return
        found = places_of(model, args, kwargs, self.shared)
        places = [place for place in found if holds_batches(place[1])]
        self.rows = possible_rows(places, self.gate.reader.batch_dim)
        if len(places) > 1:
            raise ValueError(self._bypass(type(model).__name__, places[1][0], repr(places[0][0])))
        self.lists = [(name, len(value)) for name, value in found if not holds_batches(value)]
        self.batches = None
        for name, value in places:
            batches = batches_in(value)
            self.gate.look_at_input(batches[0])
            if not isinstance(value, Tensor) and len(batches) > 1:
                self.batches = name, len(value)

    def check_bypass(self, batch_size: int) -> None:
        """Now that the number of samples is known, what else has items or a row for each?

        Warns of lists without tensors, which the model may hold for their own sake.

        Raises:
            ValueError: several batches of tensors.
        """
        if self.batches is not None and self.batches[1] != batch_size:
            name = self.batches[0]
            raise ValueError(self._bypass("the model", f"{name}[1]", repr(f"{name}[0]")))
        for name, length in self.lists:
            if batch_size == 0 or length % batch_size:
                if not torch.compiler.is_compiling():
                    self.of_all.add(name)
            elif length > 2 and name not in self.of_all:  # of two samples both go on
                self.gate.diagnostics.warn("list", self._bypass("the model", name, "its batch"))

    def _bypass(self, model: str, second: str, first: str) -> str:
        return (
            f"{model} takes {second!r} beside {first}, which still holds the whole batch after the cut, where it would "
            "be paired with the wrong samples. Prune before the model, where both are selected: "
            f"{before(self.gate.cut)}; or attach with shared=({second!r},) if nothing after the cut takes rows of it."
        )

    def training(self) -> bool:
        """Whether the model that was entered last still trains."""
        model = None if self.model is None else self.model()
        return model is None or model.training


class _Leave(Hook):
    """Forward hook on the model, for ``Reuse``; it also runs when the forward fails."""

    def __call__(self, model: nn.Module, args: Any, output: Any) -> None:
        chosen = None if torch.compiler.is_compiling() else self.gate.selection
        if chosen is not None and len(chosen.indices) < chosen.batch_size:
            if output is not None and not in_backward():
                self.gate.diagnostics.look_at_states(model, len(chosen.indices))
            elif output is None and (error := sys.exc_info()[1]) is not None:  # its sizes do not tell why
                error.add_note(
                    f"pfb: samples were stopped at the cut {self.gate.cut!r} before this. If the sizes clash, "
                    "something bypasses the cut and still holds the whole batch (a skip connection, a mask, labels "
                    f"inside the forward, a remembered batch size): prune before the model, {before(self.gate.cut)}."
                )
        self.gate.leave()


class _Stop(Hook):
    """Forward hook on the cut, for ``Reuse``."""

    def __init__(self, gate: Gate, enter: _Enter, doubt: str | None) -> None:
        super().__init__(gate)
        self.enter, self.doubt = enter, doubt

    def __call__(self, cut: nn.Module, args: Any, output: Any) -> Any:
        gate = self.gate
        if getattr(cut, "_is_replica", False):
            raise RuntimeError("nn.DataParallel is not supported; use DistributedDataParallel, one process per device")
        if in_backward():
            indices = gate.replay(output)
            return None if indices is None else self._kept(output, indices)
        if gate.meet_cut(self.enter.training()):
            raise RuntimeError(
                f"the cut {gate.cut!r} ran twice in one forward, which would prune twice. Cut at a layer that "
                f"runs once, call the model itself rather than its parts, or prune before it: {before(gate.cut)}."
            )
        if not gate.armed:
            return gate.let_pass(output)
        x, dim = batched_tensor(output), gate.reader.batch_dim
        check_rows(gate.cut, x, dim, self.enter.rows, self.doubt)
        self.enter.check_bypass(x.size(dim))
        return self._kept(output, gate.decide(output))

    def _kept(self, output: Any, indices: Tensor) -> Any:
        dim = self.gate.reader.batch_dim
        n = batched_tensor(output).size(dim)
        return select(output, indices, n, f"output of {self.gate.cut}", dim, self.gate.lists)
