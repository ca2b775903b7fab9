"""Partial Forward Blocking: train on the samples that matter, stop the others in the shallow
layers.
"""

from pfb.blocker import Blocker, attach
from pfb.estimator import DensityEstimator
from pfb.importance import PerClass, RareFirst, Stratified, Tempered, Uniform
from pfb.planner import Plan, plan
from pfb.schedule import Schedule, window
from pfb.selection import Selection, batch_size_for

__version__ = "0.1.0"

__all__ = [
    "Blocker",
    "DensityEstimator",
    "PerClass",
    "Plan",
    "RareFirst",
    "Schedule",
    "Selection",
    "Stratified",
    "Tempered",
    "Uniform",
    "attach",
    "batch_size_for",
    "plan",
    "window",
]
