"""Methods to compare Partial Forward Blocking with, each in one file behind the interface of :class:`Method`."""

from pfb.baselines.infobatch import InfoBatch
from pfb.baselines.method import Method
from pfb.baselines.orderdp import OrderDP
from pfb.baselines.release import Release
from pfb.baselines.selective_backprop import SelectiveBackprop
from pfb.baselines.skip import Skip

__all__ = ["InfoBatch", "Method", "OrderDP", "Release", "SelectiveBackprop", "Skip"]
