"""What is trained.

Shape suffixes: N samples, T tokens, V words.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn


def model_of(settings: dict[str, Any], device: torch.device) -> nn.Module:
    """A new one whose steps are timed, in training mode."""
    torch.manual_seed(settings["seed"])
    name, tiny = settings["model"], settings["tiny"]
    if name == "gpt2":
        return Writer(tiny).to(device).train()
    model: nn.Module
    if not tiny:
        model = getattr(torchvision.models, name)()
    elif name == "swin_t":
        model = torchvision.models.SwinTransformer([4, 4], 12, [1, 1], [1, 2], [4, 4], num_classes=10)
    else:
        model = for_cifar(tiny)
    return model.to(device).to(memory_format=torch.channels_last).train()


def for_cifar(tiny: bool) -> nn.Module:
    """ResNet-18 with a 3x3 convolution in the place of its first two layers, as is usual for CIFAR;
    ``tiny``: the first five of its layers.
    """
    net: nn.Module = torchvision.models.ResNet(
        torchvision.models.resnet.BasicBlock, [1 if tiny else 2] * 4, num_classes=10
    )
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    if tiny:
        net.conv1.stride = (2, 2)
        net.layer3, net.layer4, net.fc = nn.Sequential(), nn.Sequential(), nn.Linear(128, 10)
    return net


class Writer(nn.Module):
    """GPT-2 small, from tokens ``[N, T]`` to logits ``[N, T, V]``."""

    def __init__(self, tiny: bool) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes: dict[str, Any] = {"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 256} if tiny else {}
        self.net = GPT2LMHeadModel(GPT2Config(**sizes))

    def forward(self, tokens_NT: Tensor) -> Tensor:
        logits: Tensor = self.net(input_ids=tokens_NT, use_cache=False).logits
        return logits
