"""Samples that a memory of neighbours takes for copies though they are none."""

from __future__ import annotations

import torch
from torch import Tensor

from pfb.copies.reach import FEWEST
from pfb.density.neighbours import NeighbourMemory

LIKE_A_COPY = 0.5  # of the isolation of a single sample; drawn a sixteenth as often
BATCH = 256


@torch.no_grad()
def mistaken(features_ND: Tensor, near_N: Tensor, size: int) -> float:
    """Share of the samples that have no near-copy, but that a memory of so many rows takes for one:
    a minority that is more alike than the rest, or lies apart from it, is stopped so.

    A third of the samples, drawn at random, or as many as there are rows, fills the memory; the
    others are judged.

    Args:
        features_ND: of all samples.
        near_N: whether another sample is a near-copy of it.
        size: rows of the memory in training.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x, none = torch.randn(1000, 20), torch.zeros(1000, dtype=torch.bool)
        >>> apart = x.clone()
        >>> apart[:100] += 8  # nobody's copies
        >>> mistaken(x, none, size=300), round(mistaken(apart, none, size=300), 1)
        (0.0, 0.1)
    """
    n = len(features_ND)
    if n < FEWEST:
        return 0.0
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    size = max(2, min(size, n // 3))
    memory = NeighbourMemory(size)
    for rows in torch.split(order[:size], BATCH):
        memory.accumulate(features_ND[rows])
        memory.apply()
    judged = torch.split(order[size:], BATCH)
    taken = [(memory.isolation(features_ND[rows]) < LIKE_A_COPY) & ~near_N[rows] for rows in judged]
    return float(torch.cat(taken).double().mean())
