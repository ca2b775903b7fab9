"""What a run cost in operations, which no other load of the machine changes."""

from __future__ import annotations

from typing import Any

from pfb.features.cost import step_cost
from pfb.lab.train.settings import SKETCHED


def operations(run: dict[str, Any], shallow: float) -> float:
    """FLOPs of a run's training steps, in full steps of one sample; a backward counts as two
    forwards.

    A step costs what :func:`pfb.features.cost.step_cost` says, with a quarter of the shallow part where the
    pass that scores is at half the resolution, and none where there is no such pass. A forward of
    the whole model without gradients, as selective backprop makes, costs 1 / 3 per sample. A sketch
    of the input and the choice itself count for nothing.

    Args:
        run: its ``config``, ``cut``, ``processes`` and counts, as ``summary.json`` has them.
        shallow: part of the model's forward FLOPs up to the cut, :func:`pfb.features.cost.shallow_share`.

    Example:
        >>> config = {"method": "uniform", "shallow": "recompute", "batch_size": 10}
        >>> counts = {"samples": 100, "trained_samples": 70, "deep_samples": 70, "pruned_steps": 6}
        >>> operations({"config": config, "cut": "layer1", "processes": 1, **counts}, shallow=0.2)
        70.0
    """
    config, trained = run["config"], run["trained_samples"]
    if run["cut"] is None:
        return float(trained + (run["deep_samples"] - trained) / 3)
    met = run["pruned_steps"] * config["batch_size"] * run["processes"]  # in batches that were pruned
    if met == 0:
        return float(run["samples"])
    if config["shallow"] == "recompute":
        no_pass = config["method"] == "uniform" or config.get("features") in SKETCHED
        shallow = 0.0 if no_pass else shallow * config["scoring_scale"] ** 2
    return float(run["samples"] - met + met * step_cost((run["samples"] - trained) / met, shallow, config["shallow"]))
