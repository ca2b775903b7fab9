"""Do samples meet themselves in the memory, because it is longer than a third of an epoch?

A true copy lies at any age with equal probability. A sample that comes by once in each epoch, in a
new order, meets itself at ages up to the epoch's length the rarer the younger: at age a of S with
probability in proportion to a. So those met are then in the older half. Shape suffixes: N samples,
G groups of g rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_LOOK = 32  # step
PROBES = 128  # rows of a step that are looked for
NEAR = 0.4  # of the usual distance: half way between a copy and none
FIRST_ROWS = 256  # remembered, of fewer halves tell nothing
COUNTED = 16  # groups near a probe
FEWEST = 256  # probes
EXCESS = 0.1  # three deviations of that of 512 probes that all have one copy; one half of an epoch of singles: 0.12
NOBODY_ALONE, LEAST_EXCESS = 0.1, 0.03  # where less than this part met nothing, so much is enough
SINGLE = 0.25  # so many samples meet no more groups than single ones do: one in each epoch
PART = 3  # a memory should be at most this part of an epoch


def is_looked_at(step: int) -> bool:
    """Whether the host looks at what was noted in this step: 32, 48, 64, 96, 128, 192, ...

    Example:
        >>> [step for step in range(200) if is_looked_at(step)]
        [32, 48, 64, 96, 128, 192]
    """
    power = 1 << (step.bit_length() - 1) if step else 0
    return step >= FIRST_LOOK and 2 * step in (2 * power, 3 * power)


def noted(least_NG: Tensor, usual_N: Tensor, given_N: Tensor, head: Tensor, filled: Tensor, group: int) -> Tensor:
    """What probes met, ``[COUNTED + 2]``: how many met so many groups of rows (0, 1, ..., the last
    more), and by how many more the groups that were met were in the older half.

    Args:
        least_NG: square of the distance to the nearest row of each group.
        usual_N: usual distance.
        given_N: whether there is a probe.
        head: ``[]`` int64, where the oldest row is, or the next will be.
        filled: ``[]`` int64, rows that are there.
        group: g.
    """
    near_NG = (least_NG < (NEAR * usual_N).square()[:, None]) & given_N[:, None] & (filled >= FIRST_ROWS)
    place_G = torch.arange(least_NG.size(1), device=head.device) * group
    old_G = (head - 1 - place_G) % filled.clamp_min(1) >= filled // 2
    met_N = near_NG.sum(1)
    excess_N = (near_NG & old_G).sum(1).mul(2).sub(met_N) / met_N.clamp_min(1)
    bins_NB = met_N.clamp_max(COUNTED)[:, None] == torch.arange(COUNTED + 1, device=head.device)
    counted_N1 = (given_N & (filled >= FIRST_ROWS))[:, None]
    return torch.cat([(bins_NB & counted_N1).sum(0).float(), excess_N.sum(0, keepdim=True)])


def shorter(noted_B: list[float], rows: int) -> int | None:
    """Rows that a memory of so many should be reduced to, by the sums of what :func:`noted` says;
    ``None`` if they tell nothing.

    Example:
        >>> shorter([200.0, 300.0] + [0.0] * 15 + [150.0], rows=4096)
        1365
        >>> shorter([200.0, 300.0] + [0.0] * 15 + [-20.0], rows=4096)
    """
    *bins, excess = noted_B
    total = sum(bins)
    if total < FEWEST or excess < (EXCESS if bins[0] > NOBODY_ALONE * total else LEAST_EXCESS) * total:
        return None
    shares = [sum(bins[: met + 1]) / total for met in range(len(bins))]
    met = next(met for met, share in enumerate(shares) if share >= SINGLE)
    return max(2, rows // (PART * max(1, met)))
