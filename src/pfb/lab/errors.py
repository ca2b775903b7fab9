"""Errors that a person at the command line can act on; the command line prints them without a
traceback.
"""


class RunError(Exception):
    """Something outside the code stopped the run: the message names the rule, the value got and the
    way out.
    """


def first_line(error: BaseException) -> str:
    """What an error of another library says, on one line.

    Example:
        >>> first_line(ValueError("no such key\\nHint: ..."))
        'no such key'
        >>> first_line(KeyError())
        'KeyError'
    """
    return next(iter(str(error).splitlines()), "") or type(error).__name__
