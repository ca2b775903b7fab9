"""A slightly changed view of each sample: how far from itself may a copy of it lie?

Every change has the same size for all samples and a random direction, since a distance that is now
small, now large by chance tells copies worse. Each function draws from the generator given, on the
device of ``x`` (``None``: its global one), and never waits for the device. Shape suffixes: N
samples, T tokens or time, F values.
"""

from __future__ import annotations

import functools

import torch
from torch import Generator, Tensor

from pfb.features.cut import mean_and_deviation

# Swept on draws other than those that the study of groups publishes.
SHIFT = 16  # the side of an image over that of its shift, so of 32 pixels two
LIGHT = 0.03  # of an image's contrast, and of its deviation
ROWS = 0.05  # of a column's deviation
TOKENS = 10  # one of so many is replaced


def of_images(x: Tensor, generator: Generator | None = None) -> Tensor:
    """Images or volumes ``[N, C, ..., H, W]``, floating point, each shifted by a sixteenth of its
    sides towards one of the corners (reflected), and a little lighter or darker.

    Example:
        >>> of_images(torch.rand(2, 3, 32, 32), Generator().manual_seed(0)).shape
        torch.Size([2, 3, 32, 32])
    """
    alone = (len(x), *(1 for _ in x.shape[1:]))
    coins = torch.randint(2, (4, *alone), generator=generator, device=x.device)
    down, right = coins[:2].bool()
    for dim, is_back in ((-2, down), (-1, right)):
        before, after = _shifted(x.size(dim), x.device)
        x = torch.where(is_back, x.index_select(dim, before), x.index_select(dim, after))
    deviation = mean_and_deviation(x, list(range(1, x.dim())))[1]
    contrast, light = (2 * LIGHT * coins[2:].to(x.dtype) - LIGHT).unbind()
    return x + contrast * x + light * deviation


def of_vectors(x_NF: Tensor, generator: Generator | None = None) -> Tensor:
    """Floating-point vectors ``[N, F]``, with normal noise of 5 % of each column's deviation in the
    batch.

    Example:
        >>> of_vectors(torch.randn(2, 5)).shape
        torch.Size([2, 5])
    """
    return x_NF + ROWS * mean_and_deviation(x_NF, [0])[1] * _normal(x_NF.shape, x_NF, generator)


def of_sequences(x_NTF: Tensor, generator: Generator | None = None) -> Tensor:
    """Floating-point sequences ``[N, T, F]``, with an offset and noise in each step, normal and of
    5 % of each column's deviation in the batch. A step that repeats the one before it, as padding
    does, goes on doing so.

    Example:
        >>> view = of_sequences(torch.cat([torch.randn(2, 3, 1), torch.zeros(2, 4, 1)], 1))
        >>> len(view[0, 3:].unique())
        1
    """
    steps_T1 = torch.arange(x_NTF.size(1), device=x_NTF.device)[:, None]
    repeats_NT1 = torch.zeros_like(x_NTF[:, :, :1], dtype=torch.bool)
    repeats_NT1[:, 1:] = (x_NTF[:, 1:] == x_NTF[:, :-1]).all(2, keepdim=True)
    last_NT1 = steps_T1.where(~repeats_NT1, 0).cummax(1).values  # the step that this one repeats
    noise_NTF = _normal(x_NTF.shape, x_NTF, generator).gather(1, last_NT1.expand_as(x_NTF))
    offset_N1F = _normal((len(x_NTF), 1, x_NTF.size(2)), x_NTF, generator)
    return x_NTF + ROWS * mean_and_deviation(x_NTF, [0, 1])[1] * (noise_NTF + offset_N1F)


def of_tokens(x_NT: Tensor, generator: Generator | None = None) -> Tensor:
    """Whole numbers ``[N, T]``, of which one in ten, at even distances from a random place on, is
    replaced by a random one of the batch; one that repeats that before it, as padding does, stays.

    Example:
        >>> x = torch.arange(40)[None]
        >>> int((of_tokens(x, Generator().manual_seed(0)) != x).sum()) in (3, 4)
        True
    """
    n, t = x_NT.shape
    if n * t == 0:
        return x_NT
    first_N1 = torch.randint(TOKENS, (n, 1), generator=generator, device=x_NT.device)
    chosen_NT = (torch.arange(t, device=x_NT.device) + first_N1) % TOKENS == 0
    chosen_NT[:, 1:] &= x_NT[:, 1:] != x_NT[:, :-1]
    others_NT = torch.randint(n * t, (n, t), generator=generator, device=x_NT.device)
    return torch.where(chosen_NT, x_NT.flatten()[others_NT], x_NT)


@functools.lru_cache(maxsize=32)
def _shifted(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the pixels of a side come from if it is shifted by a sixteenth, back and forth; beyond
    its ends they are mirrored. Not to be changed.
    """
    shift = max(1, side // SHIFT)
    there = [[abs(place + by) for place in range(side)] for by in (-shift, shift)]
    mirrored = [[max(0, side - 1 - abs(side - 1 - place)) for place in places] for places in there]
    back, forth = torch.tensor(mirrored, device=device)
    return back, forth


def _normal(shape: tuple[int, ...], like: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
