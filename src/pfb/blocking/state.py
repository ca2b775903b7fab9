"""What a blocker saves, and whether what is loaded is that."""

from __future__ import annotations

from typing import Any

VERSION = 2
PARTS = {"version", "cut", "shallow", "features", "step", "estimator", "averages"}


def check(state: Any, **ours: str) -> None:
    """A state must be a blocker's, of this version, and saved with the same ``cut``, ``shallow``
    and ``features``.

    Raises:
        ValueError: it is not; the message says what it is.
    """
    if not isinstance(state, dict) or not state.keys() >= PARTS:
        keys = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"this is not a state of pfb.Blocker (got {keys}); pass what `Blocker.state_dict()` returned")
    if state["version"] != VERSION:
        raise ValueError(f"the state has version {state['version']!r}, this pfb reads version {VERSION}")
    for name, value in ours.items():
        if state[name] != value:
            raise ValueError(
                f"the state was saved with {name}={state[name]!r}, this blocker has {name}={value!r}: attach as before"
            )
    if type(state["step"]) is not int or state["step"] < 0:
        raise ValueError(f"the state's `step` must be a whole number >= 0 (got {state['step']!r})")
