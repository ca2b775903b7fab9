"""Which thread ran the model last: a decision must not be taken for another's."""

from __future__ import annotations

import threading


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
