"""What is loaded must be what was saved: checks that both tools make."""

from __future__ import annotations

from typing import Any


def check(state: Any, wanted: set[str], version: int, who: str, **ours: str) -> None:
    """A state must be a dict with these entries, of this version, and saved with equal settings.

    Args:
        state: what is to be loaded.
        wanted: its entries at least.
        version: of the format.
        who: the class whose state it is.
        ours: settings, by the entry that holds them.

    Raises:
        ValueError: it is not; the message says what it is.

    Example:
        >>> check({"version": 1, "step": 3, "cut": "a"}, {"step"}, 1, "pfb.Blocker", cut="b")
        Traceback (most recent call last):
        ValueError: the state was saved with cut='a', this one has cut='b': make it as before
    """
    if not isinstance(state, dict) or not state.keys() >= wanted:
        keys = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"this is not a state of {who} (got {keys}): pass what its `state_dict()` returned")
    if type(state["version"]) is not int or state["version"] != version:
        raise ValueError(f"the state has version {state['version']!r}, this pfb reads version {version}")
    for name, value in ours.items():
        if not isinstance(state.get(name), str) or state[name] != value:
            raise ValueError(
                f"the state was saved with {name}={state.get(name)!r}, this one has {name}={value!r}: make it as before"
            )
    if type(state["step"]) is not int or state["step"] < 0:
        raise ValueError(f"the state's `step` must be a whole number >= 0 (got {state['step']!r})")
