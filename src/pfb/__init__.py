"""Partial Forward Blocking: train on the samples that matter, and stop the others in the
shallow layers.

Every name is loaded at its first use: the command line answers a question for help without loading
torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfb.adviser.advice import Advice
    from pfb.adviser.advise import advise
    from pfb.adviser.planner import Plan, plan
    from pfb.blocking.attach import attach
    from pfb.blocking.blocker import Blocker
    from pfb.blocking.recompute import Recompute
    from pfb.blocking.reuse import Reuse
    from pfb.copies.acting import Copies
    from pfb.copies.files import read_groups
    from pfb.copies.near_duplicates import find_copies
    from pfb.density.moving_centers import DensityEstimator
    from pfb.density.neighbours import NeighbourMemory
    from pfb.features.originals import Originals
    from pfb.selection.rules import InverseDensity, RareFirst, Uniform
    from pfb.selection.schedule import Schedule, window
    from pfb.selection.selection import Selection, batch_size_for
    from pfb.selection.views import Views

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "Blocker",
    "Copies",
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
    "find_copies",
    "plan",
    "read_groups",
    "window",
]

_PLACES = {
    "adviser.advice": ("Advice",),
    "adviser.advise": ("advise",),
    "adviser.planner": ("Plan", "plan"),
    "blocking.attach": ("attach",),
    "blocking.blocker": ("Blocker",),
    "blocking.recompute": ("Recompute",),
    "blocking.reuse": ("Reuse",),
    "copies.acting": ("Copies",),
    "copies.files": ("read_groups",),
    "copies.near_duplicates": ("find_copies",),
    "density.moving_centers": ("DensityEstimator",),
    "density.neighbours": ("NeighbourMemory",),
    "features.originals": ("Originals",),
    "selection.rules": ("InverseDensity", "RareFirst", "Uniform"),
    "selection.schedule": ("Schedule", "window"),
    "selection.selection": ("Selection", "batch_size_for"),
    "selection.views": ("Views",),
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
