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
