"""Methods to compare Partial Forward Blocking with, each in one file: rules at the cut, and what a
loop does differently behind the interface of :class:`Method`.
"""

from pfb.lab.baselines.infobatch import InfoBatch
from pfb.lab.baselines.method import Method
from pfb.lab.baselines.orderdp import OrderDP
from pfb.lab.baselines.per_class import PerClass
from pfb.lab.baselines.release import Release
from pfb.lab.baselines.selective_backprop import SelectiveBackprop
from pfb.lab.baselines.skip import Skip
from pfb.lab.baselines.stratified import Stratified
from pfb.lab.baselines.tempered import Tempered

__all__ = [
    "InfoBatch",
    "Method",
    "OrderDP",
    "PerClass",
    "Release",
    "SelectiveBackprop",
    "Skip",
    "Stratified",
    "Tempered",
]
