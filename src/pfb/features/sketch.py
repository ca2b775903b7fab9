"""Features that do not drift: fixed random features of the model's input.

What two samples have in common is seen before any layer has learned anything, so such features need
no forward, and what a memory holds of them never goes stale. Equal on every device, rank and run up
to rounding. Shape suffixes: N samples, C channels, T tokens or time, F values, D feature
dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfb.density.kernels import full_precision
from pfb.features import own_views
from pfb.features.base import Features
from pfb.features.cut import fixed_normal, mean_and_deviation, mean_and_spread
from pfb.features.judged import are_images, as_tensor, candidates, kind_of
from pfb.selection.select import is_array

FILTERS = 16  # of images; as many again tell copies no better
RIM = 32  # the side of an image over that of its rim which does not count: a frame, a border of an augmentation
PROJECTIONS = 8  # of sequences, beside as many filters as of images
STEPS = 5  # in time that a filter of sequences spans
SIDE = 32  # images are averaged down to sides of 32 to 63 pixels
BLANK = 1e-4  # an image that deviates less from its mean is blank, and no noise is made of it
VECTOR = 256  # dimensions of the sketch of a vector: shorter ones keep their columns, each in its own units
BUCKETS = 256  # counts of tokens and of their pairs
PAIRS = 0.35  # weight of pairs, of which a changed token changes two; few tokens fill few buckets, so there they count
PRIME = 2**31 - 1
BASE, SPREAD = 1_103_515_245, 1_640_531_527  # below PRIME, so that no product leaves int64


class Sketch(Features):
    """Features ``[N, D]`` of a model's input, float32: what :class:`pfb.BatchPruner` judges by.

    Images ``[N, C, H, W]``, or a list of them of whatever sizes (``[N, H, W, C]`` where one, three
    or four channels show it, and volumes ``[N, C, T, H, W]``): averages and standard deviations
    over space of each channel, and of what 16 random 3x3 filters answer, of which half are even
    (then ReLU) and half odd from left to right (then the absolute value), so that a mirrored image
    has the same sketch. They are applied to channels that are first standardized by their own mean
    and deviation, so that pictures by night differ from each other as those by day do; and a change
    of all inputs' offset or scale changes nothing that a density in units of the features'
    deviations sees. A rim of a sixteenth of the sides does not count. Tokens ``[N, T]`` (whole
    numbers): the tokens, and with a third of the weight the pairs of neighbours, counted in 256
    hashed buckets with random signs; so one token in ten may differ between near-copies, and the
    order tells little. A token that repeats the one before it counts for nothing, so
    padding tells nothing. Sequences ``[N, T, F]``: averages and standard deviations over time of 8
    random projections and of 16 random filters over 5 steps, as for images; a step that repeats the
    one before it counts for nothing. Vectors ``[N, F]``: as they are, so that a density in units of
    the deviations sees a column of any scale as one of many; of more than 256 values as many random
    projections, in which columns of large scale rule.

    Example:
        >>> import torch
        >>> sketch = Sketch()
        >>> sketch(torch.randn(5, 3, 32, 32)).shape, sketch(torch.randint(9, (5, 20))).shape
        (torch.Size([5, 38]), torch.Size([5, 256]))
    """

    name = "sketch"

    def candidates(self, batch: Any) -> Iterator[tuple[str, Any]]:
        yield from candidates(batch)

    def refusal(self, batch: Any) -> str:
        return _refusal(batch)

    @torch.no_grad()
    def __call__(self, x: Any) -> Tensor:
        """Read the features.

        Raises:
            TypeError: no tensor, or one of which nothing is known; the message names the way out.
        """
        x = as_tensor(x) if is_array(x) else x
        if are_images(x):
            return torch.cat([self(image[None]) for image in x])
        x, kind = _prepared(x)
        with full_precision(x.device):
            return SKETCHES[kind](x)

    @torch.no_grad()
    def own_view(self, x: Any, generator: torch.Generator | None = None) -> Tensor:
        """Features ``[N, D]`` of a slightly changed view of each sample: what lies no farther from
        it than this may be its copy, see :meth:`pfb.NeighbourMemory.near_copies`.

        Images are shifted by a sixteenth of their sides and made a little lighter or darker
        (mirrored ones have the same sketch anyway), vectors and sequences get noise of 5 % of each
        column's deviation in the batch, and one in ten tokens is replaced.

        Args:
            x: as :meth:`__call__` takes it.
            generator: of the changes, on the device of ``x``; default: that device's global one.

        Raises:
            TypeError: as :meth:`__call__`.

        Example:
            >>> x, sketch = torch.rand(5, 3, 32, 32), Sketch()
            >>> own = sketch.own_view(x, torch.Generator().manual_seed(0))
            >>> other = sketch(torch.rand(5, 3, 32, 32))
            >>> bool((own - sketch(x)).norm() < (other - sketch(x)).norm())
            True
        """
        if are_images(x):
            return torch.cat([self.own_view(image[None], generator) for image in x])
        x, kind = _prepared(x)
        with full_precision(x.device):
            return SKETCHES[kind](VIEWS[kind](x, generator))


def _prepared(x: Any) -> tuple[Tensor, int]:
    """The input with its samples first, and its kind; images small."""
    kind = kind_of(x)
    if kind is None:
        raise TypeError(_refusal(x))
    x = x.detach()
    if kind == 0:
        return small((x.movedim(3, 1) if _has_channels_last(x) else x).float()), kind
    return x if kind == 2 else x.float(), kind


def _has_channels_last(x: Tensor) -> bool:
    """Whether these are images ``[N, H, W, C]``, as files are decoded to."""
    few = 1, 3, 4
    sides = x.shape[1:3]
    last = x.dim() == 4 and x.size(3) in few and x.size(1) not in few
    return last and (x.dtype == torch.uint8 or sides[0] == sides[1])


def small(x: Tensor) -> Tensor:
    """Images or volumes ``[N, C, ...]`` averaged down to sides of 32 to 63 pixels."""
    windows = [max(1, side // SIDE) for side in x.shape[2:]]
    pool = F.avg_pool2d if x.dim() == 4 else F.avg_pool3d
    return pool(x, windows) if max(windows) > 1 else x


def of_images(x: Tensor) -> Tensor:
    """Sketch of float32 images or volumes ``[N, C, ...]``, ``[N, 2 C + 32]``."""
    for dim in (-2, -1):
        rim = x.size(dim) // RIM
        x = x.narrow(dim, rim, x.size(dim) - 2 * rim)
    mean, std = mean_and_deviation(x, list(range(2, x.dim())))
    plain = (x - mean).div_((std + BLANK * mean.abs()).clamp_min(1e-30))  # in place: new memory costs more than sums
    convolve = F.conv2d if x.dim() == 4 else F.conv3d
    padding = [0 if side >= 3 else 1 for side in x.shape[2:]]  # there is nothing to see beyond the edge
    filters = fixed_normal(FILTERS, x.size(1), *(3 for _ in x.shape[2:]), device=x.device)
    even, odd = (0.5**0.5 * (part + sign * part.flip(-1)) for part, sign in zip(filters.chunk(2), (1, -1), strict=True))
    answers = [convolve(plain, even, padding=padding).relu_(), convolve(plain, odd, padding=padding).abs_()]
    return torch.cat([mean_and_spread(x, 1), *(mean_and_spread(answer, 1) for answer in answers)], 1)


def of_tokens(x_NT: Tensor) -> Tensor:
    """Sketch of tokens, ``[N, 256]`` float32."""
    x_NT = x_NT.long() % PRIME
    news_NT = torch.ones_like(x_NT, dtype=torch.float32)
    news_NT[:, 1:] = (x_NT[:, 1:] != x_NT[:, :-1]).float()
    one_NT = (x_NT + 1) % PRIME
    two_NT = (one_NT[:, :-1] * BASE + x_NT[:, 1:] + 1) % PRIME
    pairs = _counted(two_NT, news_NT[:, 1:])
    return F.normalize(_counted(one_NT, news_NT) + PAIRS * pairs, dim=1)


def _counted(hash_NT: Tensor, weights_NT: Tensor) -> Tensor:
    """Counts in hashed buckets with random signs, ``[N, 256]``, of length 1."""
    place_NT = hash_NT * SPREAD % PRIME
    sign_NT = 1 - 2 * (place_NT // BUCKETS % 2)
    counts = weights_NT.new_zeros(len(hash_NT), BUCKETS).scatter_add(1, place_NT % BUCKETS, sign_NT * weights_NT)
    return F.normalize(counts, dim=1)


def of_sequences(x_NTF: Tensor) -> Tensor:
    """Sketch of float32 sequences ``[N, T, F]``, ``[N, 48]``."""
    news_NT1 = torch.ones_like(x_NTF[:, :, :1])
    news_NT1[:, 1:] = (x_NTF[:, 1:] != x_NTF[:, :-1]).any(2, keepdim=True).float()
    width = x_NTF.size(2)
    mean, std = _weighted(x_NTF.flatten(1)[:, :, None], news_NT1.expand_as(x_NTF).flatten(1)[:, :, None])
    plain = (x_NTF - mean).div_((std + BLANK * mean.abs()).clamp_min(1e-30))
    filters = fixed_normal(FILTERS, width, STEPS, device=x_NTF.device)
    answers = F.conv1d(plain.transpose(1, 2), filters, padding=STEPS // 2).relu_().transpose(1, 2)
    projected = x_NTF @ fixed_normal(width, PROJECTIONS, device=x_NTF.device)
    return torch.cat(_weighted(torch.cat([projected, answers], 2), news_NT1), 2)[:, 0]


def _weighted(x_NTC: Tensor, weights_NT1: Tensor) -> tuple[Tensor, Tensor]:
    """Average and standard deviation over time, ``[N, 1, C]`` each, with weights."""
    n_N11 = weights_NT1.sum(1, keepdim=True).clamp_min(1.0)
    mean_N1C = (x_NTC * weights_NT1).sum(1, keepdim=True) / n_N11
    return mean_N1C, ((x_NTC - mean_N1C).square_() * weights_NT1).sum(1, keepdim=True).div_(n_N11).sqrt()


def of_vectors(x_NF: Tensor) -> Tensor:
    """Sketch of float32 vectors ``[N, F]``, ``[N, 256]`` at most."""
    width = x_NF.size(1)
    return x_NF if width <= VECTOR else x_NF @ fixed_normal(width, VECTOR, device=x_NF.device)


SKETCHES = of_images, of_sequences, of_tokens, of_vectors
VIEWS = own_views.of_images, own_views.of_sequences, own_views.of_tokens, own_views.of_vectors
"""By kind, see :func:`kind_of`."""


def _refusal(x: object) -> str:
    got = f"shape {tuple(x.shape)}, {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
    return (
        "a sketch knows images [N, C, H, W] or a list of them, token numbers [N, T], sequences [N, T, F] and vectors "
        f"[N, F] (got {got}). Pass `by=`, the tensor or key to judge by, or `features=`, a function that returns [N, D]"
    )
