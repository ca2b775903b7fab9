"""Models by name: small CIFAR ResNets of our own, all models of torchvision and timm, small
transformers.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pfb.lab.errors import RunError
from pfb.lab.train.data import SMALL_IMAGE, Source


def build(name: str, classes: int, channels: int, image_size: int) -> nn.Module:
    """A model with ``classes`` outputs for images ``[N, channels, image_size, image_size]``.

    Raises:
        RunError: no library knows the name, or the model cannot take such images.
    """
    if match := re.fullmatch(r"cifar-resnet(\d+)", name):
        blocks, rest = divmod(int(match[1]) - 2, 6)
        if rest == 0 and blocks >= 1:
            return CifarResNet(blocks, classes, channels)
    if name.startswith("timm:"):
        return _from_timm(name.removeprefix("timm:"), classes, channels, image_size)
    return _from_torchvision(name, classes, channels, image_size)


def build_for(source: Source, name: str) -> nn.Module:
    """The model that ``--model`` names, for a task and its data."""
    if source.task == "segmentation":
        return _segmenter(name, len(source.classes))
    if source.task == "language":
        return _language_model(name, len(source.classes), source.image_size)
    return build(name, len(source.classes), source.channels, source.image_size)


class CifarResNet(nn.Module):
    """The ResNet of He et al. (2016), section 4.2: three stages of 16, 32 and 64 channels, ``6 n +
    2`` layers.
    """

    def __init__(self, blocks: int, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class _BasicBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and width_in == width
            else nn.Sequential(nn.Conv2d(width_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def _stage(width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _BasicBlock(width_in, width, stride), *(_BasicBlock(width, width, 1) for _ in range(blocks - 1))
    )


def _from_torchvision(name: str, classes: int, channels: int, image_size: int) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        near = difflib.get_close_matches(name, ["cifar-resnet8", "cifar-resnet20", *names], n=3)
        raise RunError(
            f"--model must be cifar-resnet8, cifar-resnet20, ... , a classifier of torchvision, or timm:NAME (got {name!r})."
            + (f" Did you mean {' or '.join(near)}?" if near else "")
        )
    model: nn.Module = torchvision.models.get_model(name, num_classes=classes)
    if isinstance(model, torchvision.models.ResNet) and (image_size <= SMALL_IMAGE or channels != 3):
        small = image_size <= SMALL_IMAGE
        model.conv1 = nn.Conv2d(channels, 64, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        if small:
            model.maxpool = nn.Identity()
    elif channels != 3:
        raise RunError(f"torchvision's {name} takes images of 3 channels (got {channels}); use a ResNet or timm:NAME")
    return model


def _segmenter(name: str, classes: int) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models.segmentation)
    if name == "segformer":
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        sizes: dict[str, Any] = {"num_labels": classes, "hidden_sizes": [24, 48, 64, 96], "decoder_hidden_size": 64}
        return SegformerForSemanticSegmentation(SegformerConfig(**sizes))
    if name not in names:
        raise RunError(f"--model must be segformer or one of {', '.join(names)} for this data (got {name!r})")
    model: nn.Module = torchvision.models.get_model(name, num_classes=classes, weights_backbone=None)
    return model


def _language_model(name: str, tokens: int, length: int) -> nn.Module:
    if name != "gpt":
        raise RunError(f"--model must be gpt for this data (got {name!r})")
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=tokens, n_positions=length, n_embd=96, n_layer=6, n_head=4, use_cache=False)
    )


def _from_timm(name: str, classes: int, channels: int, image_size: int) -> nn.Module:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise RunError(
            f"timm has no model {name!r}."
            + (f" Did you mean {' or '.join(f'timm:{n}' for n in near)}?" if near else "")
        )
    try:
        model: nn.Module = timm.create_model(name, num_classes=classes, in_chans=channels, img_size=image_size)
    except TypeError:  # most convolutional models take any size and no such argument
        model = timm.create_model(name, num_classes=classes, in_chans=channels)
    return model
