"""Models by name. A name of torchvision or timm is that library's model; what is ours has a name
that neither has.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
from typing import Any

from torch import distributed, nn

from pfb.lab.errors import RunError
from pfb.lab.train.data import SMALL_IMAGE, Source
from pfb.lab.train.nets import pretrained
from pfb.lab.train.nets.cifar_resnet import CifarResNet

logger = logging.getLogger(__name__)

CIFAR = "cifar-resnet"
CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
"""The usual ones, for suggestions; any 6 n + 2 is built."""


def build(name: str, classes: int, channels: int, image_size: int, published: bool = False) -> nn.Module:
    """A classifier with ``classes`` outputs for images ``[N, channels, image_size, image_size]``.

    Args:
        name: ``cifar-resnet8``, ``cifar-resnet14``, ... (:class:`CifarResNet`); ``timm:`` and a
            name of timm; or a classifier of torchvision by its name there. A ResNet of torchvision
            gets the CIFAR stem for images of at most 64 pixels, which is logged: a 3x3 convolution
            of stride 1, and no max-pool.
        classes: outputs of the model.
        channels: of the images.
        image_size: their side.
        published: with the library's weights.

    Raises:
        RunError: no library knows the name, the model cannot take such images, or there are no
            weights for them.

    Example:
        >>> sum(p.numel() for p in build("cifar-resnet20", 10, 3, 32).parameters())
        272474
    """
    if name.startswith("timm:"):
        return _from_timm(name.removeprefix("timm:"), classes, channels, image_size, published)
    if match := re.fullmatch(rf"{CIFAR}(\d+)", name):
        if published:
            raise RunError(f"--pretrained is for models of torchvision and timm (got {name}); leave it out")
        return CifarResNet(_cifar_blocks(int(match[1])), classes, channels)
    return _from_torchvision(name, classes, channels, image_size, published)


def build_for(source: Source, name: str, published: bool = False) -> nn.Module:
    """The model that ``--model`` names, for a task and its data."""
    if published and source.task != "classification":
        raise RunError(f"--pretrained is for classifiers of images (got --model {name}); leave it out")
    if source.task == "segmentation":
        return _segmenter(name, len(source.classes))
    if source.task == "language":
        return _language_model(name, len(source.classes), source.image_size)
    return build(name, len(source.classes), source.channels, source.image_size, published)


def _cifar_blocks(depth: int) -> int:
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        lower = 6 * max(1, blocks) + 2
        raise RunError(
            f"--model {CIFAR}N needs a depth N of 6 n + 2 layers (got {depth}): {CIFAR}{lower} or {CIFAR}{lower + 6}"
        )
    return blocks


def _from_torchvision(name: str, classes: int, channels: int, image_size: int, published: bool) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise RunError(_unknown(name, names))
    model: nn.Module = torchvision.models.get_model(name, num_classes=classes)
    if channels != 3 and not isinstance(model, torchvision.models.ResNet):
        raise RunError(f"torchvision's {name} takes images of 3 channels (got {channels}); use a ResNet or timm:NAME")
    if published:
        if image_size <= SMALL_IMAGE or channels != 3:
            raise RunError(
                f"--pretrained: torchvision's weights are for images of 3 channels and more than {SMALL_IMAGE} pixels "
                f"(got {channels} and {image_size}); use an image folder with --image-size 224, or leave it out"
            )
        pretrained.from_torchvision(model, name, classes)
    if isinstance(model, torchvision.models.ResNet):
        if image_size <= SMALL_IMAGE:
            model.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
            model.maxpool = nn.Identity()
            _say_once(
                f"{name}: at {image_size} pixels with the CIFAR stem, a 3x3 convolution of stride 1 and no max-pool"
            )
        elif channels != 3:
            model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return model


def _unknown(name: str, names: list[str]) -> str:
    small = re.fullmatch(r"resnet(\d+)", name)
    if small and int(small[1]) % 6 == 2 and int(small[1]) > 2:
        return (
            f"--model {name}: torchvision has no ResNet of that depth; "
            f"the one for CIFAR (He et al., 2016) is {CIFAR}{small[1]}"
        )
    near = difflib.get_close_matches(name, [*(f"{CIFAR}{depth}" for depth in CIFAR_DEPTHS), *names], n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"--model must be a classifier of torchvision, timm:NAME, or {CIFAR}8, 14, 20, ... (got {name!r}).{hint}"


@functools.cache
def _say_once(text: str) -> None:
    """Log what a name leaves unsaid, on one process, and not for every model of a benchmark."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0:
        logger.info(text)


def _from_timm(name: str, classes: int, channels: int, image_size: int, published: bool) -> nn.Module:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(f'timm:{n}' for n in near)}?" if near else ""
        raise RunError(f"timm has no model {name!r}.{hint}")

    def create() -> nn.Module:
        sizes: dict[str, Any] = {"num_classes": classes, "in_chans": channels, "pretrained": published}
        model: nn.Module
        try:
            model = timm.create_model(name, img_size=image_size, **sizes)
        except TypeError:  # most convolutional models take any size and no such argument
            model = timm.create_model(name, **sizes)
        return model

    if not published:
        return create()
    model = pretrained.fetched(f"timm:{name}", create, "Try again with a network, or leave out --pretrained")
    pretrained.say_normalisation(f"timm:{name}", model)
    return model


def _segmenter(name: str, classes: int) -> nn.Module:
    """A segmentation model of torchvision, or ``segformer``: SegFormer at widths below B0's."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models.segmentation)
    if name == "segformer":
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        sizes: dict[str, Any] = {
            "num_labels": classes,
            "hidden_sizes": [24, 48, 64, 96],
            "num_attention_heads": [1, 2, 4, 8],  # each divides its width
            "decoder_hidden_size": 64,
        }
        return SegformerForSemanticSegmentation(SegformerConfig(**sizes))
    if name not in names:
        raise RunError(f"--model must be segformer or one of {', '.join(names)} for this data (got {name!r})")
    model: nn.Module = torchvision.models.get_model(name, num_classes=classes, weights_backbone=None)
    return model


def _language_model(name: str, tokens: int, length: int) -> nn.Module:
    """``gpt``: GPT-2's architecture with 6 layers of width 96, a byte a token."""
    if name != "gpt":
        raise RunError(f"--model must be gpt for this data (got {name!r})")
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"vocab_size": tokens, "n_positions": length, "n_embd": 96, "n_layer": 6, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None, use_cache=False))
