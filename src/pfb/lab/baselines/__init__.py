"""Methods to compare Partial Forward Blocking with, each in one file behind the interface of
:class:`Method`.
"""

from pfb.lab.baselines.infobatch import InfoBatch
from pfb.lab.baselines.method import Method
from pfb.lab.baselines.orderdp import OrderDP
from pfb.lab.baselines.release import Release
from pfb.lab.baselines.selective_backprop import SelectiveBackprop
from pfb.lab.baselines.skip import Skip

__all__ = ["InfoBatch", "Method", "OrderDP", "Release", "SelectiveBackprop", "Skip"]
