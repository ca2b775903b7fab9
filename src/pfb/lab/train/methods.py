"""Methods by name: what stands at the cut, and what the loop does differently."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pfb
from pfb.density.kernels import Density
from pfb.features.cut import FeatureReader, channel_layers
from pfb.features.scoring_pass import output_of
from pfb.features.sketch import Sketch
from pfb.lab.baselines import (
    InfoBatch,
    Method,
    OrderDP,
    PerClass,
    Release,
    SelectiveBackprop,
    Skip,
    Stratified,
    Tempered,
)
from pfb.lab.errors import RunError
from pfb.lab.train.config import TrainConfig, in_flags
from pfb.lab.train.idle import judges_by_originals
from pfb.lab.train.settings import SKETCHED
from pfb.selection.nested import shrink_images
from pfb.selection.rules import Importance


def importance(config: TrainConfig) -> Importance | None:
    """The importance of samples at the cut; ``None`` for methods that stop nothing there."""
    rules: dict[str, Importance] = {
        "pfb": pfb.RareFirst(config.alpha),
        "inverse-density": pfb.InverseDensity(4.0 if config.gamma is None else config.gamma),
        "tempered": Tempered(0.5 if config.gamma is None else config.gamma),
        "stratified": Stratified(),
        "uniform": pfb.Uniform(),
        "release": Release(),
    }
    rule = rules.get(config.method)
    return PerClass(rule) if config.per_class and rule is not None else rule


def method(config: TrainConfig, samples: int, device: torch.device, processes: int) -> Method:
    """The method beside the cut; for those that only stop samples there
    :class:`~pfb.lab.baselines.Skip` or none.

    Raises:
        RunError: several processes for a method whose losses lie in one, or ``--skip`` for one that
            chooses itself.
    """
    made: Method
    if config.method == "infobatch":
        made = InfoBatch(samples, device)
    elif config.method == "orderdp":
        made = OrderDP(samples, device)
    elif config.method == "selective-backprop":
        made = SelectiveBackprop()
    else:
        made = Skip(samples, config.skip) if config.skip else Method()
    if config.skip and not isinstance(made, Skip):
        raise RunError(f"--method {config.method} decides itself what is loaded or trained on; leave out --skip")
    if processes > 1 and made.needs_one_process:
        raise RunError(f"--method {config.method} keeps its losses in one process (got {processes}); run it on one")
    return made


def density(config: TrainConfig, samples: int) -> Density:
    """Moving centers, or a memory of neighbours where one is asked for or the method needs it.

    Args:
        config: the run's settings.
        samples: of one epoch.

    Raises:
        RunError: the memory is longer than an epoch.
    """
    if config.memory is None and config.method != "inverse-density":
        return pfb.DensityEstimator(config.n_centers, config.beta)
    size = min(4096, max(2, samples // 3)) if config.memory is None else config.memory
    if size >= samples:
        raise RunError(
            f"--memory must be less than an epoch of {samples} samples, best at most a third (got {size}): a longer "
            "one meets every sample again, which then looks like a copy"
        )
    return pfb.NeighbourMemory(size)


def originals(config: TrainConfig) -> pfb.Originals | None:
    """What the originals of every batch are shown to, in a run that judges by them."""
    return pfb.Originals() if judges_by_originals(config) else None


def attach(
    model: nn.Module,
    config: TrainConfig,
    importance: Importance | None,
    total_steps: int,
    samples: int,
    originals: pfb.Originals | None = None,
) -> pfb.Blocker:
    """The blocker of a run on so many samples; one that stops nothing for methods without an
    importance at the cut.

    Raises:
        RunError: the cut does not exist or cannot be found, or another setting is refused.
    """
    # A blocker that stops nothing only counts steps, at whatever layer.
    cut = next(name for name, _ in model.named_children()) if importance is None else config.cut
    estimator = density(config, samples)
    prune = 0.0 if importance is None else config.schedule()
    return attach_as(model, config, cut, prune, importance, estimator, total_steps, originals)


def wiring(config: TrainConfig) -> pfb.Reuse | pfb.Recompute:
    """The wiring of a run with its settings."""
    if config.shallow == "reuse":
        return pfb.Reuse()
    return pfb.Recompute(scale=config.scoring_scale, batchnorm=config.batchnorm)


def attach_as(
    model: nn.Module,
    config: TrainConfig,
    cut: str | None,
    prune: float | pfb.Schedule,
    importance: Importance | None,
    estimator: Density,
    total_steps: int | None = None,
    originals: pfb.Originals | None = None,
) -> pfb.Blocker:
    """``pfb.attach`` with a run's wiring."""
    try:
        return pfb.attach(
            model,
            cut,
            prune,
            channel_dim=config.channel_dim,
            features=(originals or pfb.Originals()) if config.features == "originals" else config.features,
            shallow=wiring(config),
            importance=importance,
            estimator=estimator,
            total_steps=total_steps,
        )
    except ValueError as error:
        raise in_flags(error) from error


def check(
    model: nn.Module,
    blocker: pfb.Blocker | None,
    x: Tensor,
    scale: float,
    channel_dim: int | None = None,
    features: str | None = None,
) -> None:
    """Run a few samples before training rather than fail when pruning starts. The model is left in
    eval mode.

    Raises:
        RunError: the model does not run on such input; or, with a blocker, the cut's output (the
            input, for a sketch) holds no features or the dimension of its channels cannot be told,
            or the model does not run at the scale of the scoring pass.
    """
    try:
        with torch.no_grad():
            model.eval()(x)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"the model does not run on an input of shape {tuple(x.shape)}: {error}") from error
    if blocker is None:
        return
    cut = model.get_submodule(blocker.cut)
    try:
        if features in SKETCHED:
            Sketch()(x)
        else:
            FeatureReader(channel_layers(cut, model), channel_dim=channel_dim)(output_of(model, cut, (x,), {}))
    except (ValueError, TypeError) as error:
        raise in_flags(error) from error
    if scale < 1:
        try:
            output_of(model, cut, shrink_images((x,), scale), {})
        except (AssertionError, RuntimeError, ValueError) as error:
            raise RunError(f"the model does not run on images shrunk by --scoring-scale {scale}: {error}") from error
