"""Partial Forward Blocking: train on the samples that matter, and stop the others in the
shallow layers.

Every name is loaded at its first use: the command line answers a question for help without loading
torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfb.adviser.advice import Advice as Advice
    from pfb.adviser.advise import advise as advise
    from pfb.blocking.attach import attach as attach
    from pfb.blocking.blocker import Blocker as Blocker
    from pfb.blocking.paper import paper as paper
    from pfb.copies.acting import Copies as Copies
    from pfb.copies.batch_sampler import CopyBatchSampler as CopyBatchSampler
    from pfb.copies.files import read_groups as read_groups
    from pfb.copies.near_duplicates import find_copies as find_copies
    from pfb.density.moving_centers import MovingCenters as MovingCenters
    from pfb.density.neighbours import NeighbourMemory as NeighbourMemory
    from pfb.features.shallow import Shallow as Shallow
    from pfb.features.sketch import Sketch as Sketch
    from pfb.pruning.batch_pruner import BatchPruner as BatchPruner
    from pfb.pruning.loader import PrunedLoader as PrunedLoader
    from pfb.pruning.loader import prune_batches as prune_batches
    from pfb.selection.rules import InverseDensity as InverseDensity
    from pfb.selection.rules import RareFirst as RareFirst
    from pfb.selection.rules import Uniform as Uniform
    from pfb.selection.schedule import Schedule as Schedule
    from pfb.selection.schedule import window as window
    from pfb.selection.selection import Selection as Selection
    from pfb.selection.selection import batch_size_for as batch_size_for
    from pfb.selection.views import Views as Views

__version__ = "0.1.0"

_PLACES = {
    "adviser.advice": ("Advice",),
    "adviser.advise": ("advise",),
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
    "pruning.loader": ("PrunedLoader", "prune_batches"),
    "selection.rules": ("InverseDensity", "RareFirst", "Uniform"),
    "selection.schedule": ("Schedule", "window"),
    "selection.selection": ("Selection", "batch_size_for"),
    "selection.views": ("Views",),
}
"""Public names, by the file they are in."""

__all__ = sorted(name for names in _PLACES.values() for name in names)

_MOVED = {
    "DensityEstimator": "pfb.MovingCenters",
    "Originals": "`pruner(x, y, by=originals)` of pfb.BatchPruner",
    "Plan": "pfb.Advice",
    "Recompute": "pfb.BatchPruner(features=pfb.Shallow(model), rule=pfb.RareFirst())",
    "Reuse": "pfb.attach(model), which always reuses the shallow part",
    "plan": "pfb.advise(model, loader), or the command pfb bench speed",
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
