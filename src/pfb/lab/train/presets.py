"""Recipes by name: settings that stand in front of those of a file and of flags, which win.

Each has the optimizer, schedule, sizes and regularisation of its source, as far as ``pfb train``
has them; docs/options.md says what is left out. How much is pruned, and by what, they leave open.
``accumulate`` is for one process; on several it is divided by their number.
"""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["cifar10", "imagenet-r50-16", "imagenet-r50-40", "imagenet-r50-88", "imagenet-swin-t", "finetune"]

_FAST: dict[str, Any] = {"precision": "bf16", "channels_last": True, "workers": 12}

_RESNET50: dict[str, Any] = {
    "data": "imagefolder:data/imagenet",
    "model": "resnet50",
    "image_size": 176,
    "batch_size": 512,
    "accumulate": 8,
    "optimizer": "sgd",
    "lr": 1.7,
    "lr_schedule": "cosine",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "label_smoothing": 0.1,
    **_FAST,
}

PRESETS: dict[str, dict[str, Any]] = {
    "cifar10": {
        "data": "cifar10",
        "model": "resnet18",
        "epochs": 200,
        "batch_size": 128,
        "optimizer": "sgd",
        "lr": 0.1,
        "lr_schedule": "cosine",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "label_smoothing": 0.0,
    },
    "imagenet-r50-16": {**_RESNET50, "epochs": 16},
    "imagenet-r50-40": {**_RESNET50, "epochs": 40},
    "imagenet-r50-88": {**_RESNET50, "epochs": 88},
    "imagenet-swin-t": {
        "data": "imagefolder:data/imagenet",
        "model": "swin_t",
        "image_size": 224,
        "epochs": 300,
        "batch_size": 128,
        "accumulate": 8,
        "optimizer": "adamw",
        "lr": 0.001,
        "lr_schedule": "cosine",
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "mix": "both",
        "clip": 5.0,
        "ema": 0.9999,
        **_FAST,
    },
    "finetune": {
        "model": "resnet50",
        "pretrained": True,
        "image_size": 224,
        "epochs": 20,
        "batch_size": 64,
        "accumulate": 8,
        "optimizer": "sgd",
        "lr": 0.003,
        "lr_schedule": "cosine",
        "momentum": 0.9,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        **_FAST,
    },
}
