"""Published methods to compare with, each in one file: a rule at the cut, and what a training loop
does differently behind the interface of :class:`Loop`.
"""

from pfb.lab.baselines.infobatch import InfoBatch
from pfb.lab.baselines.loop import Loop
from pfb.lab.baselines.orderdp import OrderDP
from pfb.lab.baselines.release import Release
from pfb.lab.baselines.selective_backprop import SelectiveBackprop

__all__ = ["InfoBatch", "Loop", "OrderDP", "Release", "SelectiveBackprop"]
