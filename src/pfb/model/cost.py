"""What a pruned step costs in operations, by the cost model of ``docs/method.md``."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pfb.model.scoring_pass import output_of, scoring_mode
from pfb.model.side_effects import as_in_training


def shallow_share(model: nn.Module, cut: str, *inputs: object) -> float:
    """The part of the model's forward FLOPs that is spent up to the cut: s in the cost model of
    ``docs/method.md``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 24))
        >>> shallow_share(model, "0", torch.ones(2, 8))
        0.25
    """
    # In training no layer takes PyTorch's fused paths, whose operations are not counted.
    with scoring_mode(model), torch.no_grad(), as_in_training():
        with FlopCounterMode(display=False) as whole:
            model(*inputs)
        with FlopCounterMode(display=False) as part:
            output_of(model, model.get_submodule(cut), inputs, {})
    return float(part.get_total_flops() / whole.get_total_flops())


def step_cost(prune: float, shallow_share: float, wiring: str) -> float:
    """FLOPs of a pruned step, full step = 1, a backward counted as two forwards.

    ``1 - p (1 - s)`` for ``"reuse"``, ``1 - p + s / 3`` for ``"recompute"``; 1 if nothing is
    pruned.

    Example:
        >>> round(step_cost(0.4, 0.275, "reuse"), 3), round(step_cost(0.4, 0.275, "recompute"), 3)
        (0.71, 0.692)
    """
    if prune == 0:
        return 1.0
    return 1 - prune * (1 - shallow_share) if wiring == "reuse" else 1 - prune + shallow_share / 3
