"""Partial Forward Blocking: train on the samples that matter, and stop the others in the
shallow layers.
"""

from pfb.advice import Advice
from pfb.adviser import advise
from pfb.attach import attach
from pfb.blocker import Blocker
from pfb.estimator import DensityEstimator
from pfb.importance import InverseDensity, RareFirst, Uniform
from pfb.memory import NeighbourMemory
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
