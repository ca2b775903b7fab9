"""Methods by name, one object each: how a batch is pruned before the model, what is attached to the
model, what the loop does differently, and which settings it reads.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

import pfb
from pfb.blocking.paper import LEVELS, START, STOP
from pfb.lab.baselines import InfoBatch, Loop, OrderDP, Release, SelectiveBackprop
from pfb.lab.errors import RunError
from pfb.lab.train.options.config import TrainConfig, in_flags
from pfb.lab.train.options.settings import PruningSettings
from pfb.selection.choice import choose
from pfb.selection.rules import Rule, RuleCall

if TYPE_CHECKING:
    from pfb.lab.train.data.source import Batch, Source

Share = float | pfb.Schedule
SHARE = {"prune", "start", "stop", "ramp"}
ALWAYS = {"start": 0.05, "stop": 0.875, "ramp": 0}
PAPER = {"start": START, "stop": STOP, "ramp": LEVELS}
AT_A_CUT = frozenset({"cut", "channel_dim", "n_centers", "beta", "alpha"})


class Method:
    """Training on all samples; the others override what they do differently.

    Attributes:
        reads: settings it uses, beside the share and the window of pruning.
        window: its defaults of these.
        before_model: whether batches are pruned before the model sees them.
        judges_stored: whether by what the data hold, before any augmentation.
    """

    reads: frozenset[str] = frozenset()
    window: ClassVar[dict[str, Any]] = ALWAYS
    before_model = False
    judges_stored = False

    def check(self, config: TrainConfig) -> None:
        """Refuse what can be refused without data."""

    def pruner(
        self, config: TrainConfig, model: nn.Module, share: Share, calls: int, samples: int
    ) -> pfb.BatchPruner | None:
        """What prunes a batch before the model, in so many calls over epochs of so many samples."""
        return None

    def by(self, source: Source, batch: Batch) -> Any:
        """What a batch is judged by before the model."""
        return None

    def attach(self, config: TrainConfig, model: nn.Module, share: Share, steps: int) -> pfb.Blocker | None:
        """What stops samples inside the model, in a training of so many steps of the optimizer."""
        return None

    def loop(self, samples: int, device: torch.device) -> Loop:
        """What the loop does differently."""
        return Loop()

    def full_steps(self, run: dict[str, Any], shallow: float) -> float:
        """What a run cost: FLOPs, in full steps of one sample, a backward counted as two forwards.

        Args:
            run: its counts, as ``summary.json`` has them.
            shallow: part of the model's forward FLOPs up to the cut.
        """
        return float(run["samples"])

    def described(self, prune: float, cut: str | None) -> str:
        """What becomes of a batch, for people."""
        return "no sample is left out"


@dataclass(frozen=True)
class Before(Method):
    """A batch is pruned before the model by a rule that needs no pass of the model."""

    rule: Callable[[TrainConfig], Rule]
    reads: frozenset[str] = frozenset()
    which: str = "random samples"
    before_model = True

    @property
    def judges_stored(self) -> bool:  # type: ignore[override]
        return self.which != "random samples"

    def check(self, config: TrainConfig) -> None:
        self.rule(config)

    def pruner(
        self, config: TrainConfig, model: nn.Module, share: Share, calls: int, samples: int
    ) -> pfb.BatchPruner | None:
        rule = self.rule(config)
        density = _memory(config, samples) if isinstance(rule, pfb.InverseDensity) else None
        return _pruner(config, share, calls, rule=rule, density=density)

    def by(self, source: Source, batch: Batch) -> Any:
        return source.original(batch) if self.judges_stored else "index"

    def full_steps(self, run: dict[str, Any], shallow: float) -> float:
        return float(run["trained_samples"])

    def described(self, prune: float, cut: str | None) -> str:
        return f"{prune:.0%} of every batch is left out before the model: {self.which}"


class PaperBefore(Method):
    """The paper's rule before the model: its shallow part runs first, without graph."""

    reads = AT_A_CUT | {"fill"}
    window = PAPER
    before_model = True

    def pruner(
        self, config: TrainConfig, model: nn.Module, share: Share, calls: int, samples: int
    ) -> pfb.BatchPruner | None:
        try:
            features = pfb.Shallow(model, config.cut, channel_dim=config.channel_dim)
        except ValueError as error:
            raise in_flags(error) from error
        density = pfb.MovingCenters(config.n_centers, config.beta)
        return _pruner(config, share, calls, rule=pfb.RareFirst(config.alpha), features=features, density=density)

    def by(self, source: Source, batch: Batch) -> Any:
        return source.prepare_test(batch["input"])

    def full_steps(self, run: dict[str, Any], shallow: float) -> float:
        scored = run["pruned_steps"] * run["config"]["batch_size"] * run["processes"]
        return float(run["trained_samples"] + scored * shallow / 3)

    def described(self, prune: float, cut: str | None) -> str:
        return f"{prune:.0%} of every batch is left out before the model, judged by its features at {cut!r}"


@dataclass(frozen=True)
class Inside(Method):
    """Partial Forward Blocking: samples stop after the cut."""

    rule: Callable[[TrainConfig], Rule]
    reads: frozenset[str] = AT_A_CUT | {"feature_dim"}
    window = PAPER

    def attach(self, config: TrainConfig, model: nn.Module, share: Share, steps: int) -> pfb.Blocker | None:
        try:
            return pfb.attach(
                model,
                config.cut,
                share,
                rule=self.rule(config),
                density=pfb.MovingCenters(config.n_centers, config.beta),
                feature_dim=config.feature_dim,
                channel_dim=config.channel_dim,
                total_steps=steps,
            )
        except ValueError as error:
            raise in_flags(error) from error

    def full_steps(self, run: dict[str, Any], shallow: float) -> float:
        trained = run["trained_samples"]
        return float(trained + shallow * (run["samples"] - trained))

    def described(self, prune: float, cut: str | None) -> str:
        return f"{prune:.0%} of every batch stops inside the model, after {cut!r}"


@dataclass(frozen=True)
class InLoop(Method):
    """A method that goes by losses."""

    kind: Callable[[int, torch.device], Loop]

    def loop(self, samples: int, device: torch.device) -> Loop:
        return self.kind(samples, device)

    def full_steps(self, run: dict[str, Any], shallow: float) -> float:
        trained = run["trained_samples"]
        return float(trained + (run["deep_samples"] - trained) / 3)  # forwards without a backward

    def described(self, prune: float, cut: str | None) -> str:
        return f"{prune:.0%} of the samples are left out by their losses"


METHODS: dict[str, Method] = {
    "copies": Before(
        lambda config: pfb.InverseDensity(),
        frozenset({"memory", "fill"}),
        "near-duplicates of samples seen lately",
    ),
    "paper": Inside(lambda config: pfb.RareFirst(config.alpha)),
    "paper-before": PaperBefore(),
    "uniform": Before(lambda config: pfb.Uniform(), frozenset({"fill"})),
    "full": Method(),
    "release": Inside(lambda config: Release(), AT_A_CUT - {"alpha"} | {"feature_dim"}),
    "infobatch": InLoop(InfoBatch),
    "orderdp": InLoop(OrderDP),
    "selective-backprop": InLoop(lambda samples, device: SelectiveBackprop()),
}


@functools.cache
def method_of(name: str) -> Method:
    """The method that ``--method`` names.

    Raises:
        RunError: there is none of that name.
    """
    if ":" in name:
        return Before(functools.partial(_own_rule, name), frozenset({"memory", "fill"}), f"by the rule {name}")
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        raise RunError(
            f"--method must be {', '.join(METHODS)}, or MODULE:NAME of a rule of your own (got {name!r})."
            + (f" Did you mean {near[0]}?" if near else "")
        )
    return METHODS[name]


def unused(config: TrainConfig) -> list[str]:
    """Names of settings that differ from their defaults and change nothing.

    Example:
        >>> unused(TrainConfig(method="infobatch", cut="layer1", prune=0.3))
        ['cut']
    """
    reads = {"method", *method_of(config.method).reads} | (set() if config.method == "full" else SHARE)
    pruning = {f.name for f in fields(PruningSettings)}
    return [name for name in config.changed() if name in pruning - reads]


@contextlib.contextmanager
def paused(*tools: pfb.BatchPruner | pfb.Blocker | None) -> Iterator[None]:
    """Inside, none of these leaves anything out: all samples train."""
    with contextlib.ExitStack() as stack:
        for tool in tools:
            if tool is not None:
                stack.enter_context(tool.paused())
        yield


def check(model: nn.Module, tools: tuple[Any, Any], x: Tensor, config: TrainConfig) -> None:
    """Run two samples before training rather than fail when pruning starts. The model is left in
    eval mode.

    Raises:
        RunError: the model does not run on such input, or the samples cannot be judged.
    """
    pruner, blocker = tools
    try:
        with torch.no_grad():
            model.eval()(x)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"the model does not run on an input of shape {tuple(x.shape)}: {error}") from error
    try:
        if blocker is not None:
            pfb.Shallow(model, blocker.cut, channel_dim=config.channel_dim)(x)
        if pruner is not None and RuleCall.of(pruner.rule).reads != "nothing":
            features = pruner.features(x)
            generator = torch.Generator(features.device).manual_seed(0)
            choose(features, RuleCall.of(pruner.rule), pruner.density, pfb.Views(), 0, features, generator)
    except (ValueError, TypeError) as error:
        raise in_flags(error) from error


def _pruner(config: TrainConfig, share: Share, calls: int, **settings: Any) -> pfb.BatchPruner:
    views = pfb.Views(config.repeats, interleaved=True) if config.repeats > 1 else 1
    return pfb.BatchPruner(share, total_steps=calls, seed=config.seed, views=views, **settings)


def _memory(config: TrainConfig, samples: int) -> pfb.NeighbourMemory:
    """Of the samples seen lately, which knows how long an epoch is."""
    memory = pfb.NeighbourMemory() if config.memory is None else pfb.NeighbourMemory(config.memory)
    memory.epoch = samples
    return memory


def _own_rule(name: str, config: TrainConfig) -> Rule:
    """The rule that stands as ``NAME`` in ``MODULE``, here or where Python finds modules.

    Raises:
        RunError: there is none, or it is none.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
        rule: Any = found() if inspect.isclass(found) else found
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        raise RunError(f"--method {name}: {type(error).__name__}: {error}. Give MODULE:NAME of a rule") from error
    if not callable(rule):
        raise RunError(
            f"--method {name} must be a function of features [N, D] (and, as second argument, the density) that "
            f"returns one number per sample, larger is kept (got {type(rule).__name__})"
        )
    return cast(Rule, rule)
