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
    from pfb.blocking.paper import paper
    from pfb.copies.acting import Copies
    from pfb.copies.batch_sampler import CopyBatchSampler
    from pfb.copies.files import read_groups
    from pfb.copies.near_duplicates import find_copies
    from pfb.density.moving_centers import MovingCenters
    from pfb.density.neighbours import NeighbourMemory
    from pfb.features.shallow import Shallow
    from pfb.features.sketch import Sketch
    from pfb.pruning.batch_pruner import BatchPruner
    from pfb.pruning.loader import PrunedLoader, prune_batches
    from pfb.selection.rules import InverseDensity, RareFirst, Uniform
    from pfb.selection.schedule import Schedule, window
    from pfb.selection.selection import Selection, batch_size_for
    from pfb.selection.views import Views

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "BatchPruner",
    "Blocker",
    "Copies",
    "CopyBatchSampler",
    "InverseDensity",
    "MovingCenters",
    "NeighbourMemory",
    "Plan",
    "PrunedLoader",
    "RareFirst",
    "Schedule",
    "Selection",
    "Shallow",
    "Sketch",
    "Uniform",
    "Views",
    "advise",
    "attach",
    "batch_size_for",
    "find_copies",
    "paper",
    "plan",
    "prune_batches",
    "read_groups",
    "window",
]

_PLACES = {
    "adviser.advice": ("Advice",),
    "adviser.advise": ("advise",),
    "adviser.planner": (
        "Plan",
        "plan",
    ),
    "blocking.attach": ("attach",),
    "blocking.blocker": ("Blocker",),
    "blocking.paper": ("paper",),
    "copies.acting": ("Copies",),
    "copies.batch_sampler": ("CopyBatchSampler",),
    "copies.files": ("read_groups",),
    "copies.near_duplicates": ("find_copies",),
    "density.moving_centers": ("MovingCenters",),
    "density.neighbours": ("NeighbourMemory",),
    "features.shallow": ("Shallow",),
    "features.sketch": ("Sketch",),
    "pruning.batch_pruner": ("BatchPruner",),
    "pruning.loader": (
        "PrunedLoader",
        "prune_batches",
    ),
    "selection.rules": (
        "InverseDensity",
        "RareFirst",
        "Uniform",
    ),
    "selection.schedule": (
        "Schedule",
        "window",
    ),
    "selection.selection": (
        "Selection",
        "batch_size_for",
    ),
    "selection.views": ("Views",),
}

_MOVED = {
    "DensityEstimator": "pfb.MovingCenters",
    "Originals": "`pruner(x, y, by=originals)` of pfb.BatchPruner",
    "Recompute": "pfb.BatchPruner(features=pfb.Shallow(model), rule=pfb.RareFirst())",
    "Reuse": "pfb.attach(model), which always reuses the shallow part",
}
"""Names of before 0.2, and what replaces them."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        instead = f": use {_MOVED[name]}" if name in _MOVED else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{instead}")
    place = next(place for place, names in _PLACES.items() if name in names)
    value = getattr(importlib.import_module(f"{__name__}.{place}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
