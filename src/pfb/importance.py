"""Which samples matter: the paper's rule, softer ones, and the uniform baseline. Any callable of
the same form will do.

A criterion takes features ``[N, D]`` and returns importance ``[N]``, larger is kept. One that takes
a second argument is given the run's :class:`~pfb.DensityEstimator`, which is then maintained for
it. One that has ``reads_features = False`` looks at the number of samples alone: ``recompute`` then
runs no scoring pass for it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pfb.density import log_importance
from pfb.estimator import DensityEstimator

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class RareFirst:
    """The paper's importance ``1 / (f(x_i) + r_i)``: samples where the shallow features are dense
    are redundant.

    ``r_i = alpha_i * max f`` over the batch with one draw ``alpha_i ~ U(0, alpha)`` per sample
    (arXiv 2506.23674). Returns ``log I``; draws from the global generator of the features' device.

    Attributes:
        alpha: upper end of the random term, as a share of the batch's largest density; 0 is strict
            rarest-first.

    Example:
        >>> import torch, pfb
        >>> estimator = pfb.DensityEstimator(n_centers=4)
        >>> estimator.accumulate(torch.randn(64, 2)); estimator.apply()
        >>> RareFirst()(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), estimator).argmax()
        tensor(1)
    """

    alpha: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"`alpha` must be a finite number >= 0 (got {self.alpha!r}); the paper uses 0.01")

    def __call__(self, features: Tensor, estimator: DensityEstimator) -> Tensor:
        log_density_N = estimator.log_density(features)
        return log_importance(log_density_N, self.alpha * torch.rand_like(log_density_N))


@dataclass(frozen=True)
class Tempered:
    """Sampling by density instead of a hard rule: without replacement, with weights ``exp(-gamma *
    z_i)``.

    ``z_i`` is the batch's log density in units of its standard deviation, so ``gamma`` means the
    same at every cut and dimension. 0 is :class:`Uniform`, large is strict rarest-first, negative
    favours dense samples. The draw is that of Gumbel noise on the log weights (Kool et al., 2019,
    arXiv 1903.06059). Returns the perturbed log weights.

    Attributes:
        gamma: how strongly density decides; 0.5 is mild.

    Example:
        >>> import torch, pfb
        >>> estimator = pfb.DensityEstimator(n_centers=4)
        >>> estimator.accumulate(torch.randn(64, 2)); estimator.apply()
        >>> x = torch.tensor([[0.0, 0.0], [9.0, 9.0], [0.1, 0.0]])
        >>> Tempered(gamma=50.0)(x, estimator).argmax()
        tensor(1)
    """

    gamma: float = 0.5

    def __post_init__(self) -> None:
        if not math.isfinite(self.gamma):
            raise ValueError(f"`gamma` must be a finite number (got {self.gamma!r}); 0.5 is mild, 0 is uniform")

    def __call__(self, features: Tensor, estimator: DensityEstimator) -> Tensor:
        log_density_N = estimator.log_density(features)
        spread = log_density_N.std(correction=0)
        z_N = torch.where(spread > 0, (log_density_N - log_density_N.mean()) / spread, 0.0)
        return -self.gamma * z_N + gumbel(log_density_N)


@dataclass(frozen=True)
class Stratified:
    """Every sample equally likely, and every region of feature space represented: uniform with less
    variance.

    Samples are lined up by their nearest center, in random order within it, and a low-discrepancy
    sequence with a random start (the multiples of the golden ratio) is laid over the line. So of
    each region the share that goes on is nearly that of the whole batch, where :class:`Uniform`
    leaves it to chance.

    Example:
        >>> import torch, pfb
        >>> x = torch.cat([torch.zeros(50, 1), torch.full((50, 1), 9.0)])
        >>> estimator = pfb.DensityEstimator(n_centers=2)
        >>> estimator.accumulate(torch.tensor([[0.0], [9.0]])); estimator.apply()
        >>> kept = Stratified()(x, estimator).topk(20).indices
        >>> 9 <= int((kept < 50).sum()) <= 11
        True
    """

    def __call__(self, features: Tensor, estimator: DensityEstimator) -> Tensor:
        n, device = features.size(0), features.device
        within = torch.rand(n, device=device)
        region = torch.zeros_like(within) if not estimator.ready else estimator.nearest(features)
        place = torch.argsort(region + within).argsort()
        return (place * GOLDEN_RATIO + torch.rand((), device=device)) % 1


class PerClass:
    """Another criterion within each class: every class keeps the share that the batch keeps.

    Where density differs between classes, a rule over the whole batch starves some of them. This
    one ranks a sample among those of its own class. It must be shown the labels before each forward
    that prunes: ``criterion.see(y)``.

    Args:
        criterion: what ranks the samples of a class; default :class:`RareFirst`.

    Raises:
        RuntimeError: it is asked without having been shown this batch's labels.
        ValueError: labels of another length or form.

    Example:
        >>> import torch, pfb
        >>> criterion = PerClass(lambda features: features[:, 0])
        >>> criterion.see(torch.tensor([0, 0, 0, 0, 1, 1]))
        >>> x = torch.tensor([[9.0], [8.0], [7.0], [6.0], [1.0], [2.0]])
        >>> criterion(x, None).topk(3).indices.sort().values
        tensor([0, 1, 5])
    """

    def __init__(self, criterion: Callable[..., Tensor] | None = None) -> None:
        self.criterion: Callable[..., Tensor] = RareFirst() if criterion is None else criterion
        self.reads_features: bool = getattr(self.criterion, "reads_features", True)
        self._needs_density = takes_density(self.criterion)
        self._labels: Tensor | None = None

    def see(self, labels: Tensor) -> None:
        """Show the classes ``[N]`` (whole numbers) of the batch that goes forward next."""
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(
                f"`labels` must be classes [N] (got shape {tuple(labels.shape)}, {labels.dtype}); for mixup or soft labels "
                "pass the most likely class"
            )
        self._labels = labels

    def __call__(self, features: Tensor, estimator: DensityEstimator) -> Tensor:
        labels, self._labels = self._labels, None
        if labels is None:
            raise RuntimeError("PerClass needs the labels of the batch: call `criterion.see(y)` before each forward")
        if len(labels) != len(features):
            raise ValueError(f"PerClass was shown {len(labels)} labels for a batch of {len(features)}")
        importance_N = self.criterion(features, estimator) if self._needs_density else self.criterion(features)
        same_NN = labels[:, None] == labels
        rank_N = (same_NN & (importance_N > importance_N[:, None])).sum(1)
        # The random part of a rank decides between classes whose ranks fall on the same place.
        return -(rank_N + torch.rand_like(importance_N)) / same_NN.sum(1)


@dataclass(frozen=True)
class Uniform:
    """Every sample equally likely: the baseline a criterion has to beat at the same pruned share.

    With ``shallow="recompute"`` no scoring pass is run, so a step costs what one on the kept
    samples costs.

    Example:
        >>> import torch
        >>> Uniform()(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    reads_features: ClassVar[bool] = False

    def __call__(self, features: Tensor) -> Tensor:
        return torch.rand(features.size(0), device=features.device)


def takes_density(criterion: Callable[..., Tensor]) -> bool:
    """Whether a criterion wants the estimator as its second argument."""
    try:
        parameters = inspect.signature(criterion).parameters.values()
    except (TypeError, ValueError):
        return False
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) >= 2


def gumbel(like: Tensor) -> Tensor:
    """Independent draws of the standard Gumbel distribution, one per element."""
    return -torch.empty_like(like).exponential_().log()
