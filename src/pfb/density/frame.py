"""Middle and deviations of what a memory holds: the units of its distances.

Shape suffixes: M remembered rows, L those that are looked at, D feature dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfb.density.centers import DEAD_CHANNEL, spread_of, within_reach
from pfb.density.kernels import median
from pfb.density.search import median_of_positive

LOOK = 256  # rows that tell where the middle is
MEASURED = 4096  # rows that tell the deviations


def frame_of(rows_MD: Tensor, filled: Tensor) -> Tensor:
    """The middle of the first ``filled`` rows, and 1 / their standard deviation, 0 for a dead
    dimension; ``[2, D]``. A far row does not change those of the others.

    Example:
        >>> frame_of(torch.tensor([[0.0, 5.0], [2.0, 5.0], [9.0, 9.0]]), torch.tensor(2))
        tensor([[0., 5.],
                [1., 0.]])
    """
    sample_LD = rows_MD.index_select(0, torch.arange(LOOK, device=filled.device) * filled // LOOK)
    middle_D = median(sample_LD)
    size = len(rows_MD)
    there_M1 = (torch.arange(size, device=filled.device) < filled)[:, None]
    if size > MEASURED:  # evenly from all that is there, so that a longer memory takes no longer
        rows_MD = rows_MD.index_select(0, torch.arange(MEASURED, device=filled.device) * filled // MEASURED)
        filled, there_M1 = torch.full_like(filled, MEASURED), filled > 0
    near_MD = within_reach(rows_MD - middle_D, spread_of(sample_LD.sub_(middle_D)))
    n = filled.clamp_min(1)
    mean_D = near_MD.mul_(there_M1).sum(0) / n
    std_D = ((near_MD - mean_D).mul_(there_M1).square_().sum(0) / n).sqrt()
    alive_D = std_D > DEAD_CHANNEL * median_of_positive(std_D)  # of the widest, one column would blind all
    return torch.stack([middle_D, torch.where(alive_D, 1 / torch.where(alive_D, std_D, 1.0), 0.0)])
