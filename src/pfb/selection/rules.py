"""Which samples matter: the paper's rule, one that draws, and the uniform baseline. Any callable of
the same form will do.

A rule takes features ``[N, D]`` and returns importance ``[N]``, larger is kept. What it ``reads``
decides what is done for it: ``"density"`` (it is given the run's density as second argument, which
is maintained for it), ``"features"`` alone, or ``"nothing"`` but the number of samples
(``recompute`` then runs no scoring pass). Of a plain function its arguments tell: a second one that
has no default, or is called ``estimator``, is given the density; any other is a setting of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from pfb.density.kernels import Density, log_importance
from pfb.selection.sampling import drawn

Importance = Callable[..., Tensor]
Reads = Literal["density", "features", "nothing"]


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

    def __call__(self, features: Tensor, estimator: Density) -> Tensor:
        log_density_N = estimator.log_density(features)
        return log_importance(log_density_N, self.alpha * torch.rand_like(log_density_N))


@dataclass(frozen=True)
class InverseDensity:
    """Samples are drawn, without replacement, with weight ``d ** gamma``: the rule that sees what
    repeats itself.

    d is the density's ``isolation``: with a :class:`pfb.NeighbourMemory` the distance to the
    nearest feature remembered, in proportion to what is usual around there, from 1/3 to 1. Since
    ``f ~ d ** -D``, this is the paper's importance ``1 / f`` to the power of ``gamma / D``, drawn
    instead of ranked: 81 copies of one thing come by about as often as one single sample, and where
    no sample is another's copy the draw is nearly uniform. Returns the logarithms of the weights
    plus Gumbel noise, whose largest are such a draw; draws from the generator given, or the
    global one of the features' device.

    Attributes:
        gamma: how strongly copies are left out; 0 is uniform.

    Example:
        >>> import torch, pfb
        >>> _ = torch.manual_seed(0)
        >>> memory = pfb.NeighbourMemory(64)
        >>> memory.accumulate(torch.randn(64, 8)); memory.apply()
        >>> copy, new = memory.state_dict()["rows"][:1], torch.full((1, 8), 3.0)
        >>> InverseDensity().log_weights(torch.cat([copy, new]), memory).exp()
        tensor([0.0123, 1.0000])
    """

    gamma: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf"):
            raise ValueError(f"`gamma` must be a finite number >= 0 (got {self.gamma!r}); the default is 4")

    def log_weights(self, features: Tensor, density: Density, own: Tensor | None = None) -> Tensor:
        """``gamma * log d``, ``[N]``: what the draw is in proportion to.

        Args:
            features: ``[N, D]``.
            density: what they are judged by.
            own: ``[N, D]``, of a slightly changed view of each sample, see
                :meth:`pfb.NeighbourMemory.isolation`.
        """
        isolation_N = density.isolation(features) if own is None else density.isolation(features, own)
        return self.gamma * isolation_N.log()

    def __call__(
        self,
        features: Tensor,
        density: Density,
        own: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return drawn(self.log_weights(features, density, own), generator)


@dataclass(frozen=True)
class Uniform:
    """Every sample equally likely: the baseline a rule has to beat at the same pruned share.

    With ``shallow="recompute"`` no scoring pass is run, so a step costs what one on the kept
    samples costs.

    Example:
        >>> import torch
        >>> Uniform()(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    reads: ClassVar[Reads] = "nothing"

    def __call__(self, features: Tensor) -> Tensor:
        return torch.rand(features.size(0), device=features.device)


def reads_of(importance: Importance) -> Reads:
    """What a rule reads: what its attribute ``reads`` says, else by its number of arguments.

    Raises:
        ValueError: ``reads`` is something else.

    Example:
        >>> reads_of(RareFirst()), reads_of(lambda features: features[:, 0])
        ('density', 'features')
    """
    said = getattr(importance, "reads", None)
    if said is not None:
        if said not in ("density", "features", "nothing"):
            raise ValueError(f'`reads` of a rule must be "density", "features" or "nothing" (got {said!r})')
        return cast(Reads, said)
    try:
        parameters = inspect.signature(importance).parameters.values()
    except (TypeError, ValueError):
        return "features"
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return "density"
    second = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][1:2]
    return "density" if any(p.default is p.empty or p.name in ("estimator", "density") for p in second) else "features"
