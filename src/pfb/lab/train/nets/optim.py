"""Optimizer and learning rate by name."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR, StepLR

from pfb.lab.train.options.config import TrainConfig

MOMENTUM_SWING = 0.05
"""How far OneCycle moves the momentum to either side, as by PyTorch's default of 0.85 to 0.95."""


def optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW without decay of norms, biases and relative positions
    and with the momentum as beta1.
    """
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    decays = {name: p.dim() > 1 and "relative_position" not in name for name, p in model.named_parameters()}
    matrices = [p for name, p in model.named_parameters() if decays[name]]
    vectors = [p for name, p in model.named_parameters() if not decays[name]]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))


def schedule_anew(of: torch.optim.Optimizer, config: TrainConfig, total_steps: int) -> LRScheduler:
    """A schedule from its start, for an optimizer whose former one is over."""
    for group in of.param_groups:
        group["lr"] = config.lr
        group.pop("initial_lr", None)
    return schedule(of, config, total_steps)


def schedule(of: torch.optim.Optimizer, config: TrainConfig, total_steps: int) -> LRScheduler:
    """OneCycle (div 25, final div 1e4, 30 % warm-up, momentum against the rate), cosine after
    linear warm-up, a tenth after each third, or constant.
    """
    if config.lr_schedule == "onecycle":
        swing = min(MOMENTUM_SWING, config.momentum, (1 - config.momentum) / 2)
        return OneCycleLR(
            of,
            max_lr=config.lr,
            total_steps=total_steps,
            cycle_momentum=config.momentum > 0,
            base_momentum=round(config.momentum - swing, 12),
            max_momentum=round(config.momentum + swing, 12),
        )
    if config.lr_schedule == "cosine":
        warmup = max(1, int(total_steps * config.warmup))
        falls = CosineAnnealingLR(of, max(1, total_steps - warmup), eta_min=config.lr_end)
        parts = [LinearLR(of, 0.01, total_iters=warmup), falls]
        return SequentialLR(of, parts, milestones=[warmup])
    if config.lr_schedule == "step":
        return StepLR(of, max(1, -(-total_steps // 3)), gamma=0.1)
    return LinearLR(of, 1.0, 1.0)
