"""Partial Forward Blocking: train on the samples that matter, and stop the others in the
shallow layers.

Every name is loaded at its first use: the command line answers a question for help without loading
torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfb.advice import Advice
    from pfb.adviser import advise
    from pfb.attach import attach
    from pfb.blocker import Blocker
    from pfb.estimator import DensityEstimator
    from pfb.importance import InverseDensity, RareFirst, Uniform
    from pfb.memory import NeighbourMemory
    from pfb.originals import Originals
    from pfb.planner import Plan, plan
    from pfb.recompute import Recompute
    from pfb.reuse import Reuse
    from pfb.schedule import Schedule, window
    from pfb.selection import Selection, batch_size_for
    from pfb.views import Views

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "Blocker",
    "DensityEstimator",
    "InverseDensity",
    "NeighbourMemory",
    "Originals",
    "Plan",
    "RareFirst",
    "Recompute",
    "Reuse",
    "Schedule",
    "Selection",
    "Uniform",
    "Views",
    "advise",
    "attach",
    "batch_size_for",
    "plan",
    "window",
]

_PLACES = {
    "advice": ("Advice",),
    "adviser": ("advise",),
    "attach": ("attach",),
    "blocker": ("Blocker",),
    "estimator": ("DensityEstimator",),
    "importance": ("InverseDensity", "RareFirst", "Uniform"),
    "memory": ("NeighbourMemory",),
    "originals": ("Originals",),
    "planner": ("Plan", "plan"),
    "recompute": ("Recompute",),
    "reuse": ("Reuse",),
    "schedule": ("Schedule", "window"),
    "selection": ("Selection", "batch_size_for"),
    "views": ("Views",),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for place, names in _PLACES.items():
        module = importlib.import_module(f"{__name__}.{place}")
        globals().update({n: getattr(module, n) for n in names})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        """Let ``attach`` stay the function when Python notes that the module of that name was
        imported.
        """
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
