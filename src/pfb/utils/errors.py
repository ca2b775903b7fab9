"""Errors of code that is not ours, and what they say on one line."""


class RuleError(ValueError):
    """A rule of the user's failed, or returned what is no importance; the cause is chained."""


def first_line(error: BaseException) -> str:
    """The message's first line, or the error's name if it has none.

    Example:
        >>> first_line(ValueError("no such key\\nHint: ..."))
        'no such key'
        >>> first_line(KeyError())
        'KeyError'
    """
    return next(iter(str(error).splitlines()), "") or type(error).__name__
