"""A draw without replacement with given weights, and the chances that it gave.

Shape suffixes: N samples, K kept ones, G groups of rows that go on together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def drawn(log_weights_N: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Importance ``[N]`` whose largest are a draw without replacement with these weights: Gumbel
    noise is added.

    Args:
        log_weights_N: logarithms, floating point.
        generator: draws from it, on the weights' device; default: that device's global one.

    Example:
        >>> import torch
        >>> drawn(torch.tensor([0.0, -40.0, 0.0]), torch.Generator().manual_seed(0)).argmin()
        tensor(1)
    """
    return log_weights_N - torch.empty_like(log_weights_N).exponential_(generator=generator).log()


def inverse_probability(log_weights_N: Tensor, importance_N: Tensor, kept_K: Tensor) -> Tensor:
    """What each kept sample counts for, ``[K]``, so that the mean over them is an unbiased estimate
    of the mean over all: ``(K / N) / p_i``.

    ``p_i = 1 - exp(-exp(log w_i - t))`` is the chance that sample i, drawn by :func:`drawn`, comes
    out above t, the largest importance of those stopped (Duffield, Lund and Thorup, J. ACM 2007;
    Kool, van Hoof and Welling, ICML 2019). A weight above ``sqrt(K)`` is cut off there, which
    bounds the variance and costs that much bias (Ionides, 2008). Broken samples are kept always.

    Example:
        >>> import torch
        >>> log_weights = torch.tensor([0.0, 0.0, -2.0])
        >>> inverse_probability(log_weights, torch.tensor([1.0, 0.3, 0.9]), torch.tensor([0, 2]))
        tensor([1.2740, 1.4142])
    """
    k, n = len(kept_K), len(log_weights_N)
    stopped_N = importance_N.index_fill(0, kept_K, -torch.inf)
    threshold = F.pad(stopped_N, (0, 1), value=-torch.inf).max()  # of none, too
    chance_K = -torch.expm1(-(log_weights_N[kept_K] - threshold).exp())
    return (k / max(n, 1) / chance_K.nan_to_num(1.0)).clamp_max(max(k, 1) ** 0.5)


@dataclass(frozen=True)
class Draw:
    """One decision that was a draw.

    Attributes:
        log_weights: ``[G]``, what it was in proportion to.
        importance: ``[G]``, what came out.
        kept: ``[K]`` int64, the groups that go on.
    """

    log_weights: Tensor
    importance: Tensor
    kept: Tensor

    def weights(self, groups: Tensor) -> Tensor:
        """What a row of each of these groups, all kept, counts for."""
        weights_K = inverse_probability(self.log_weights, self.importance, self.kept)
        return weights_K.new_zeros(len(self.log_weights)).index_copy(0, self.kept, weights_K)[groups]
