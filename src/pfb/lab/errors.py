"""Errors that a person at the command line can act on; the command line prints them without a
traceback.
"""

from __future__ import annotations

from pfb.utils.errors import first_line


class RunError(Exception):
    """Something outside the code stopped the run: the message names the rule, the value got and the
    way out.
    """

    def __init__(self, message: str) -> None:
        # A loader's process hands on its traceback as text, and the message as its end.
        super().__init__(
            message.rpartition(".RunError: ")[2].strip() if message.startswith("Caught RunError in ") else message
        )


class Stopped(RunError):
    """A run that had begun was stopped from outside; ``reason`` says by what, and no way out."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def from_outside(error: BaseException) -> str | None:
    """What the system did to a process, on one line; ``None`` for an error of the code.

    Example:
        >>> from_outside(MemoryError())
        'memory is short (MemoryError)'
        >>> from_outside(RuntimeError("shapes differ")) is None
        True
    """
    said = first_line(error)
    if isinstance(error, OSError):
        return said
    if isinstance(error, RuntimeError) and said.startswith("DataLoader worker"):
        return f"a loader's process was killed, mostly because memory is short ({said})"
    short = ("out of memory", "can't allocate memory", "not enough memory")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in said for words in short)):
        return f"memory is short ({said})"
    return None


def printable(text: str) -> str:
    """A name of a stranger for a terminal or a picture: what is no letter, such as a code that
    moves the cursor or a byte that is not UTF-8, is written as its code.

    Example:
        >>> printable("Vögel\\x1b[2J\\n")
        'Vögel\\\\x1b[2J\\\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
