"""Settings that a run does not use, told so that nobody believes they did something."""

from __future__ import annotations

from pfb.lab.train.config import TrainConfig
from pfb.lab.train.settings import SKETCHED

NOT_AT_THE_CUT = ("full", "infobatch", "orderdp", "selective-backprop")
DENSITY = {"features", "memory", "n_centers", "beta"}
SCORING = {"batchnorm", "scoring_scale"}
AT_THE_CUT = {"cut", "channel_dim", "shallow", "alpha", "gamma", "reweight", "per_class"} | DENSITY | SCORING


def idle(config: TrainConfig) -> list[str]:
    """Names of settings that differ from their defaults and change nothing.

    Example:
        >>> idle(TrainConfig(method="infobatch", cut="layer1", prune=0.3))
        ['cut']
    """
    unused: set[str] = set()
    if config.method in NOT_AT_THE_CUT:
        unused |= AT_THE_CUT
    if config.method == "full" and not config.skip:
        unused |= {"start", "stop", "ramp"} | ({"prune"} if config.prune else set())
    if config.method == "uniform" and not config.per_class:
        unused |= DENSITY | SCORING
    if config.method != "pfb":
        unused |= {"alpha"}
    if config.method not in ("inverse-density", "tempered"):
        unused |= {"gamma"}
    if config.method != "inverse-density":
        unused |= {"reweight"}
    if config.method == "inverse-density" or config.memory is not None:
        unused |= {"n_centers", "beta"}
    if config.shallow == "reuse" or config.features in SKETCHED:
        unused |= SCORING
    if config.shallow == "recompute" and (config.features in SKETCHED or config.method == "uniform"):
        unused |= {"cut"}  # samples stop before the model
    return [name for name in config.changed() if name in unused]


def judges_by_originals(config: TrainConfig) -> bool:
    """Whether the run reads what its inputs were before they were augmented."""
    return config.features == "originals" and "features" not in idle(config)
