"""Checks of the settings that benchmarks and studies share; each names its option by the keyword it
gets.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Any

from pfb.lab.errors import RunError


def known(names: Collection[str], **settings: str | Sequence[str] | None) -> None:
    """Every name given must be one of ``names``; ``None`` stands for none given.

    Raises:
        RunError: a name that is not, with the nearest that are.

    Example:
        >>> known(["reuse"], variants=("reuze",))
        Traceback (most recent call last):
        pfb.lab.errors.RunError: --variants: no 'reuze' among reuse. Did you mean 'reuse'?
    """
    for option, name in _each(settings):
        if name is not None and name not in names:
            near = difflib.get_close_matches(name, names, n=2)
            hint = f". Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise RunError(f"{option}: no {name!r} among {', '.join(names)}{hint}")


def at_least(least: int, **settings: int | Sequence[int]) -> None:
    """Raises ``RunError`` for a number below ``least``, and for a list without any."""
    for option, number in _each(settings):
        if number < least:
            raise RunError(f"{option} must be at least {least} (got {number})")


def shares(**settings: float | Sequence[float]) -> None:
    """Raises ``RunError`` for a number outside [0, 1), and for a list without any."""
    for option, share in _each(settings):
        if not 0 <= share < 1:
            raise RunError(f"{option} must be in [0, 1) (got {share})")


def _each(settings: dict[str, Any]) -> list[tuple[str, Any]]:
    """Options as they are typed, with their values one by one."""
    pairs = []
    for name, values in settings.items():
        option = f"--{name.replace('_', '-')}"
        several = isinstance(values, Sequence) and not isinstance(values, str)
        if several and not values:
            raise RunError(f"{option} needs at least one value")
        pairs += [(option, value) for value in (values if several else [values])]
    return pairs
