"""Random numbers, and draws without replacement with given weights.

Shape suffix: N samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 2**64 - 1


def drawn(log_weights_N: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Importance whose largest are a draw without replacement with these weights: Gumbel noise is
    added (Efraimidis and Spirakis, 2006). Without a generator from the global one of their device.
    """
    return log_weights_N - torch.empty_like(log_weights_N).exponential_(generator=generator).log()


def random_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform numbers in [0, 1) of the shape, type and device of ``x``."""
    return torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def generator_of(device: torch.device, *numbers: int) -> torch.Generator:
    """A generator of its own for these numbers (a seed, a rank, a step): a run that is resumed
    draws what it would have drawn, and nobody else's random stream is touched. Steele, Lea and
    Flood's SplitMix64 (OOPSLA 2014) makes one seed of them.

    Example:
        >>> a, b = (generator_of(torch.device("cpu"), 0, 0, step) for step in (1, 1))
        >>> torch.equal(torch.rand(5, generator=a), torch.rand(5, generator=b))
        True
    """
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
        state ^= state >> 31
    return torch.Generator(device).manual_seed(state >> 1)
