"""Which samples matter: the paper's rule, one that draws, and the uniform baseline. Any callable of
the same form will do.

A rule takes features ``[N, D]`` and returns importance ``[N]``, larger is kept. What it ``reads``
decides what is done for it: ``"density"`` (it is given the run's density as second argument, which
is maintained for it), ``"features"`` alone, or ``"nothing"`` but the number of samples. Of a plain
function its arguments tell: a second one that has no default, or is called ``density``, is given
the density; one called ``generator`` the random numbers to draw from, and one called ``own`` the
features ``[N, D]`` of each sample's own, slightly changed view.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from pfb.density.kernels import Density, log_importance
from pfb.density.neighbours import NeighbourMemory
from pfb.selection.sampling import drawn, random_like

Rule = Callable[..., Tensor]
Reads = Literal["density", "features", "nothing"]


@dataclass(frozen=True)
class RareFirst:
    """The paper's importance ``1 / (f(x_i) + r_i)``: samples where the shallow features are dense
    are redundant.

    ``r_i = alpha_i * max f`` over the batch with one draw ``alpha_i ~ U(0, alpha)`` per sample
    (arXiv 2506.23674). Returns ``log I``.

    Attributes:
        alpha: upper end of the random term, as a share of the batch's largest density; 0 is strict
            rarest-first.

    Example:
        >>> import torch, pfb
        >>> centers = pfb.MovingCenters(n_centers=4)
        >>> centers.accumulate(torch.randn(64, 2)); centers.apply()
        >>> RareFirst()(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), centers).argmax()
        tensor(1)
    """

    alpha: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"`alpha` must be a finite number >= 0 (got {self.alpha!r}); the paper uses 0.01")

    def __call__(self, features: Tensor, density: Density, generator: torch.Generator | None = None) -> Tensor:
        log_density_N = density.log_density(features)
        return log_importance(log_density_N, self.alpha * random_like(log_density_N, generator))


@dataclass(frozen=True)
class InverseDensity:
    """Samples are drawn, without replacement, with weight ``1 / (f + r)``: the rule that sees what
    repeats itself.

    f is the number of near-copies of a sample that a :class:`pfb.NeighbourMemory` remembers. This
    is the paper's importance with a density that is local, drawn instead of ranked: of two groups
    that are in the memory, one comes by about as often as the other, whatever their sizes; no
    sample vanishes, and where none is another's copy the draw is uniform. Returns the logarithms of
    the weights plus Gumbel noise, whose largest are such a draw.

    Attributes:
        r: what a sample counts for by itself: one with a single near-copy in the memory has weight
            ``r / (1 + r)`` of one without.

    Example:
        >>> import torch, pfb
        >>> _ = torch.manual_seed(0)
        >>> memory = pfb.NeighbourMemory(64)
        >>> memory.accumulate(torch.randn(64, 8)); memory.apply()
        >>> copy, new = memory.state_dict()["rows"][:1], torch.full((1, 8), 3.0)
        >>> InverseDensity().log_weights(torch.cat([copy, new]), memory).exp()
        tensor([0.0909, 1.0000])
    """

    r: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.r < float("inf"):
            raise ValueError(f"`r` must be a finite number > 0 (got {self.r!r}); the default is 0.1")

    def log_weights(self, features: Tensor, density: NeighbourMemory, own: Tensor | None = None) -> Tensor:
        """``log (r / (f + r))``, ``[N]``: what the draw is in proportion to, 0 for one alone."""
        return -torch.log1p(density.near_copies(features, own) / self.r)

    def __call__(
        self,
        features: Tensor,
        density: NeighbourMemory,
        own: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return drawn(self.log_weights(features, density, own), generator)


@dataclass(frozen=True)
class Uniform:
    """Every sample equally likely: the baseline a rule has to beat at the same pruned share.

    Example:
        >>> import torch
        >>> Uniform()(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    reads: ClassVar[Reads] = "nothing"

    def __call__(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(features.size(0), device=features.device, generator=generator)


@dataclass(frozen=True)
class RuleCall:
    """A rule, and what it is to be given.

    Attributes:
        rule: the callable.
        reads: what it reads: what its attribute ``reads`` says, else by its number of arguments.
        takes: which of ``"own"`` and ``"generator"`` it has an argument for.
    """

    rule: Rule
    reads: Reads
    takes: frozenset[str]

    @classmethod
    def of(cls, rule: Rule) -> RuleCall:
        """Look at a rule.

        Raises:
            ValueError: its attribute ``reads`` is something else.

        Example:
            >>> RuleCall.of(RareFirst()).reads, RuleCall.of(lambda features: features[:, 0]).reads
            ('density', 'features')
        """
        try:
            parameters = list(inspect.signature(rule).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        takes = frozenset({"own", "generator"} & {p.name for p in parameters})
        said = getattr(rule, "reads", None)
        if said is None:
            positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
            second = [p for p in positional if p.name not in takes][1:2]
            anything = any(p.kind is p.VAR_POSITIONAL for p in parameters)
            dense = anything or any(p.default is p.empty or p.name == "density" for p in second)
            said = "density" if dense else "features"
        if said not in ("density", "features", "nothing"):
            raise ValueError(f'`reads` of a rule must be "density", "features" or "nothing" (got {said!r})')
        return cls(rule, cast(Reads, said), takes)

    def __call__(
        self,
        features_ND: Tensor,
        density: Density,
        own_ND: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Importance ``[N]``.

        Raises:
            ValueError: the rule returns something else than one value per sample.
        """
        given: dict[str, Any] = {"own": own_ND, "generator": generator}
        named = {name: value for name, value in given.items() if name in self.takes and value is not None}
        arguments = (features_ND, density) if self.reads == "density" else (features_ND,)
        return _one_per_sample("rule", self.rule(*arguments, **named), len(features_ND))

    def log_weights(self, features_ND: Tensor, density: Density, own_ND: Tensor | None = None) -> Tensor | None:
        """Logarithms of the weights ``[N]`` that a rule with a method of this name draws by.

        Raises:
            ValueError: the rule returns something else than one value per sample.
        """
        weigh = getattr(self.rule, "log_weights", None)
        if weigh is None:
            return None
        own = {"own": own_ND} if own_ND is not None and "own" in self.takes else {}
        return _one_per_sample("log_weights", weigh(features_ND, density, **own), len(features_ND))


def _one_per_sample(who: str, returned: Any, n: int) -> Tensor:
    if isinstance(returned, Tensor) and returned.shape == (n,):
        return returned
    got = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
    raise ValueError(f"`{who}` must return one value per sample, shape ({n},) (got {got})")


RULES = {"rarefirst": "RareFirst", "inversedensity": "InverseDensity", "uniform": "Uniform"}


def checked_rule(rule: Rule | None, default: Rule) -> RuleCall:
    """What a user gave as ``rule=``.

    Raises:
        TypeError: no callable, or a class instead of one of its objects.
    """
    if rule is None:
        return RuleCall.of(default)
    if isinstance(rule, type) or not callable(rule):
        said = rule.__name__ if isinstance(rule, type) else str(rule)
        near = difflib.get_close_matches(said.lower().replace("-", ""), RULES, n=1)
        raise TypeError(
            f"`rule` must be a callable such as `pfb.RareFirst()` or a function of features [N, D] (got {rule!r})."
            + (f" Did you mean `pfb.{RULES[near[0]]}()`?" if near else "")
        )
    return RuleCall.of(rule)
