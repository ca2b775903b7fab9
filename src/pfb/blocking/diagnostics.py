"""Warnings, each issued once per blocker, and what they are based on."""

from __future__ import annotations

import threading

from pfb.pruning.first_look import FirstLook

STEPS_UNREAD = 20  # of which nobody read the selection


class Diagnostics(FirstLook):
    """The warnings of one blocker."""

    def __init__(self) -> None:
        super().__init__()
        self._unread = False  # nobody has read the latest decision yet
        self._lost = False  # ... nor, in this step, one before it
        self._reads = 0  # of the latest decision, to select labels
        self._stepped = False  # before the first step a forward may be a first try
        self._steps_unread = 0

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


class Threads:
    """Threads of the pruned forwards since the last step."""

    def __init__(self) -> None:
        self._latest = 0
        self._seen: set[int] = set()

    def note(self) -> None:
        """This one runs a pruned forward."""
        self._latest = threading.get_ident()
        self._seen.add(self._latest)

    def clear(self) -> None:
        """A step ended."""
        self._seen.clear()

    def check(self) -> None:
        """The decision at hand must be of the thread that asks for it, if that has run any.

        Raises:
            RuntimeError: another thread has run the model since.
        """
        asking = threading.get_ident()
        if self._latest != asking and asking in self._seen:
            raise RuntimeError(
                "this model is run by two threads within one step, and the latest decision is the other's. Give every "
                "thread a model and a blocker of its own."
            )
