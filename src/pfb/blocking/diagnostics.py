"""Warnings, each issued once per blocker, and what they are based on."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from pfb.pruning.first_look import FirstLook
from pfb.selection.nested import places

STEPS_UNREAD = 20  # of which nobody read the selection
LEAST_KEPT = 3  # rows; of fewer a tensor's length tells nothing


class Diagnostics(FirstLook):
    """The warnings of one blocker."""

    def __init__(self) -> None:
        super().__init__()
        self._unread = False  # nobody has read the latest decision yet
        self._lost = False  # ... nor, in this step, one before it
        self._reads = 0  # of the latest decision, to select labels
        self._stepped = False  # before the first step a forward may be a first try
        self._steps_unread = 0
        self._states: list[Tensor] | None = None  # what modules held after the first pruned forward
        self._looked_at_states = False

    def look_at_states(self, model: nn.Module, kept: int) -> None:
        """After the first two pruned forwards: does a module hold something with one row per kept
        sample, new in each? The next batch would go on from it.
        """
        if self._looked_at_states or kept < LEAST_KEPT:
            return
        found = list(_states(model, kept))
        if self._states is None:
            self._states = [x for _, x in found]
            return
        before, self._states, self._looked_at_states = self._states, None, True
        name = next((name for name, x in found if before and all(x is not old for old in before)), None)
        if name is not None:
            self.warn(
                "state",
                f"the model remembers `{name}` between batches, with one row per kept sample. If the next forward goes "
                "on from it, row i is another sample's then: keep what belongs to a stream out of the model and "
                "select it by pfb.BatchPruner with the batch, or run with `blocker.paused()`. Otherwise ignore this "
                "warning.",
            )

    def read(self, labels: bool = False) -> None:
        """The latest decision is read; to select ``labels`` by it, the usual case, there must not
        be an earlier one that nobody read.
        """
        self._reads += labels
        if labels and self._lost and (self._stepped or self._reads > 1):
            self.warn(
                "lost",
                "two pruned forwards ran in one step, and the first one's selection was not read before the second, "
                "so labels of the first would be selected by the second's decision. Select right after each forward, "
                "keep `s = blocker.selection` for a later `s.select(y)`, or put both inside "
                "`with blocker.decide_once():` if their rows belong together.",
            )
        self._unread = False
        self._steps_unread = -1

    def end_step(self) -> None:
        """An optimizer step is done."""
        self._stepped = True
        if self._unread and self._steps_unread >= 0:
            self._steps_unread += 1
        if self._steps_unread == STEPS_UNREAD:
            self.warn(
                "unread",
                f"{STEPS_UNREAD} steps pruned samples and nobody read which: labels, masks and whatever else is "
                "compared with the output need `blocker.select(...)`. If the loss needs none, ignore this warning.",
            )
        self._unread = self._lost = False

    def decided(self, kept: int, of: int, is_repeat: bool = False) -> None:
        """A decision was taken."""
        self._lost = self._lost or (self._unread and not is_repeat)
        self._unread, self._reads = kept < of, 0
        self.count(kept, of)


def _states(model: nn.Module, rows: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors without graph that modules hold, no parameters, with so many rows."""
    for path, module in model.named_modules():
        for name, value in [*module._buffers.items(), *vars(module).items()]:
            if isinstance(value, (Tensor, tuple, list, dict)) and not name.startswith(("_forward", "_backward")):
                for place, x in places(value, f"{path}.{name}" if path else name):
                    if isinstance(x, Tensor) and x.dim() > 1 and rows in x.shape[:2] and not x.requires_grad:
                        yield place, x
