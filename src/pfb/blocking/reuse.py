"""The paper's wiring: the cut's forward hook returns the kept part of the cut's output, graph and
all.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pfb.blocking.gate import Gate
from pfb.blocking.hooks import Hook, refuse_replica, register
from pfb.blocking.inputs import (
    batched_places,
    batches_in,
    check_rows,
    checked_names,
    lists_without_tensors,
    possible_rows,
)
from pfb.blocking.replay import in_backward
from pfb.features.cut import batched_tensor
from pfb.selection import nested as tree


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
        self, model: nn.Module, cut: nn.Module, cut_name: str, gate: Gate, doubt: str | None = None, dim: int = 0
    ) -> list[RemovableHandle]:
        """Register the hooks and return their handles. ``doubt``: see :func:`check_rows`; the cut's
        output, and the input, have their samples in ``dim``.
        """
        enter = _Enter(gate, cut_name, self.shared, dim)
        return register(model, cut, enter, _Stop(gate, cut_name, enter, doubt, dim), _Leave(gate, cut_name))


class _Enter(Hook):
    """Forward pre-hook on the model, for ``Reuse``."""

    def __init__(self, gate: Gate, cut_name: str, shared: tuple[str, ...], dim: int) -> None:
        super().__init__(gate, cut_name)
        self.shared, self.dim = shared, dim
        self.model: weakref.ref[nn.Module] | None = None
        self.rows: tuple[int, ...] = ()  # what the batch's size may be, by the model's input
        self.lists: list[tuple[str, int]] = []  # inputs that may have one item per sample, and their lengths
        self.batches: tuple[str, int] | None = None  # a list, its length, that may hold several batches
        self.of_all: set[str] = set()  # lists that were seen to be of another length than a batch
        self.sight: Tensor | None = None  # features of the model's input, until the cut is met

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            self.model = weakref.ref(model)
        if not self.gate.enter(model.training):
            return
        places = batched_places(model, args, kwargs, self.shared)
        self.rows = possible_rows(places, self.dim)
        if len(places) > 1:
            raise ValueError(self._bypass(type(model).__name__, places[1][0], repr(places[0][0])))
        self.lists = lists_without_tensors(model, args, kwargs, self.shared)
        self.batches = None
        for name, value in places:
            batches = batches_in(value)
            self.gate.look_at_input(batches[0])
            if not isinstance(value, Tensor) and len(batches) > 1:
                self.batches = name, len(value)
        if self.gate.sees_input and not in_backward():
            if not places:
                raise ValueError(f"the inputs of {type(model).__name__} hold no batch of tensors to judge samples by")
            self.sight = self.gate.sight(places[0][1])

    def check_bypass(self, batch_size: int) -> None:
        """Now that the number of samples is known, what else has one item or row for each?

        Warns of lists without tensors, which the model may hold for their own sake.

        Raises:
            ValueError: several batches of tensors.
        """
        if self.batches is not None and self.batches[1] != batch_size:
            name = self.batches[0]
            raise ValueError(self._bypass("the model", f"{name}[1]", repr(f"{name}[0]")))
        for name, length in self.lists:
            if length != batch_size:
                if not torch.compiler.is_compiling():
                    self.of_all.add(name)
            elif length > 2 and name not in self.of_all:  # of two samples both go on
                self.gate.hints.tell("list", self._bypass("the model", name, "its batch"))

    def _bypass(self, model: str, second: str, first: str) -> str:
        return (
            f"{model} takes {second!r} beside {first}, and with reuse it still holds the whole batch after the cut, "
            'where it would be paired with the wrong samples. Use shallow="recompute", which selects both; or name it '
            f"in pfb.Reuse(shared=({second!r},)) if nothing after the cut takes rows of it."
        )

    def training(self) -> bool:
        """Whether the model that was entered last still trains."""
        model = None if self.model is None else self.model()
        return model is None or model.training


class _Leave(Hook):
    """Forward hook on the model, for ``Reuse``; it also runs when the forward fails."""

    def __call__(self, model: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and output is None and self.gate.stopped_any:
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


class _Stop(Hook):
    """Forward hook on the cut, for ``Reuse``."""

    def __init__(self, gate: Gate, cut_name: str, enter: _Enter, doubt: str | None, dim: int) -> None:
        super().__init__(gate, cut_name)
        self.enter, self.doubt, self.dim = enter, doubt, dim

    def __call__(self, cut: nn.Module, args: Any, output: Any) -> Any:
        gate = self.gate
        refuse_replica(cut)
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
        x = batched_tensor(output)
        check_rows(self.cut_name, x, self.dim, self.enter.rows, self.doubt)
        self.enter.check_bypass(x.size(self.dim))
        sight, self.enter.sight = self.enter.sight, None
        return self._kept(output, gate.decide(output, sight))

    def _kept(self, output: Any, indices: Tensor) -> Any:
        n = batched_tensor(output).size(self.dim)
        return tree.select(output, indices, n, f"output of {self.cut_name}", self.dim, self.gate.lists)
