"""Whether a saved state is one of a memory of neighbours, before anything is taken over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfb.density.epochs import COUNTED

NAMES = ("rows", "counts", "frame", "pending", "noted")


def tensors_of(state: dict[str, Any], size: int) -> dict[str, Tensor | None]:
    """The tensors of a state of a memory of ``size`` rows, by name.

    Raises:
        ValueError: not a state of a memory, of another size, or of parts that do not belong
            together.
    """
    wanted = {"size", "updates", "limit", *NAMES}
    if not isinstance(state, dict) or not wanted <= state.keys():
        lacks = sorted(wanted - state.keys()) if isinstance(state, dict) else f"all, it is a {type(state).__name__}"
        raise ValueError(f"the state of the memory lacks {lacks}; it is damaged or another density's")
    if type(state["size"]) is not int or state["size"] != size:
        raise ValueError(
            f"the saved memory holds {state['size']} features, this one {size}: make it with "
            f"`density=pfb.NeighbourMemory({state['size']})`"
        )
    if type(state["updates"]) is not int or state["updates"] < 0:
        raise ValueError(f"the memory's `updates` must be a whole number >= 0 (got {state['updates']!r})")
    if type(state["limit"]) is not int or not 2 <= state["limit"] <= size:
        raise ValueError(f"the memory's `limit` must be from 2 to {size} (got {state['limit']!r})")
    tensors = {name: state[name] for name in NAMES}
    if any(x is not None and not isinstance(x, Tensor) for x in tensors.values()):
        raise ValueError(f"the memory's {', '.join(NAMES)} must be tensors or None")
    types = {name: torch.int64 if name == "counts" else torch.float32 for name in NAMES}
    if wrong := [name for name, x in tensors.items() if x is not None and x.dtype != types[name]]:
        raise ValueError(f"the memory's `{wrong[0]}` must be {types[wrong[0]]} (got {state[wrong[0]].dtype})")
    shapes = {name: None if x is None else tuple(x.shape) for name, x in tensors.items()}
    if shapes["pending"] is not None and len(shapes["pending"]) != 2:
        raise ValueError(f"the memory's `pending` must be [P, D + 1] (got shape {shapes['pending']})")
    d = 0 if shapes["pending"] is None else shapes["pending"][1] - 1
    filled = {"rows": (size, d), "counts": (2,), "frame": (2, d), "noted": (COUNTED + 2,)}
    if {name: shapes[name] for name in filled} not in (filled, dict.fromkeys(filled)):
        raise ValueError(f"the shapes of the memory's state do not belong together (got {shapes})")
    if isinstance(counts := tensors["counts"], Tensor):
        head, rows = counts.tolist()
        if not (0 <= head < state["limit"] and 0 <= rows <= state["limit"]):
            raise ValueError(f"the memory's `counts` must lie within its {state['limit']} rows (got {head} and {rows})")
    return tensors
