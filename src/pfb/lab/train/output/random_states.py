"""The state of every random number generator of every process, as numbers that can be read without
running code.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object


class RandomStates:
    """A part of a checkpoint: all processes ask for it together, and each takes back its own."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def state_dict(self) -> dict[str, Any]:
        return {"by_process": gather_object([_read(self.accelerator.device)])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _restore(state["by_process"][self.accelerator.process_index], self.accelerator.device)


def _read(device: torch.device) -> dict[str, Any]:
    numpy: Any = np.random.get_state()  # noqa: NPY002 - the global one, which libraries draw from
    kind, key, *rest = numpy
    states = {"python": random.getstate(), "numpy": [kind, key.tolist(), *rest], "torch": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state()
    return states


def _restore(states: dict[str, Any], device: torch.device) -> None:
    random.setstate(states["python"])
    kind, key, *rest = states["numpy"]
    np.random.set_state((kind, np.array(key, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["device"])
