"""Recipes by name: settings that stand in front of those of a file and of flags, which win.

Each has the optimizer, schedule, sizes and regularisation of its source as far as they are known;
docs/options.md says where they are from. All train by the paper's method, with one of the shares
that the paper gives; ``--prune`` and ``--method`` change that. ``accumulate`` is for one process;
on several it is divided by their number.
"""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["cifar10", "cifar100", "imagenet-r50", "imagenet-swin-t", "finetune"]

_CIFAR: dict[str, Any] = {
    "model": "resnet18",
    "method": "paper",
    "prune": 0.5,
    "epochs": 200,
    "batch_size": 128,
    "optimizer": "sgd",
    "lr": 0.05,
    "lr_schedule": "onecycle",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
}
_FAST: dict[str, Any] = {"precision": "bf16", "channels_last": True, "workers": 12}
_IMAGENET: dict[str, Any] = {"data": "imagefolder:data/imagenet", "method": "paper", "image_size": 224, **_FAST}

PRESETS: dict[str, dict[str, Any]] = {
    "cifar10": {"data": "cifar10", **_CIFAR},
    "cifar100": {"data": "cifar100", **_CIFAR},
    "imagenet-r50": {
        **_IMAGENET,
        "model": "resnet50",
        "prune": 0.4,
        "epochs": 90,
        "batch_size": 256,
        "optimizer": "sgd",
        "lr": 0.1,
        "lr_schedule": "step",
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "label_smoothing": 0.0,
    },
    "imagenet-swin-t": {
        **_IMAGENET,
        "model": "swin_t",
        "prune": 0.4,
        "start": 16 / 300,
        "stop": 260 / 300,
        "epochs": 300,
        "batch_size": 256,
        "accumulate": 4,
        "repeats": 4,
        "policy": "ta_wide",
        "erase": 0.25,
        "mix": "both",
        "optimizer": "adamw",
        "lr": 0.001,
        "lr_schedule": "cosine",
        "warmup": 20 / 300,
        "lr_end": 1e-5,
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "clip": 5.0,
        "ema": 0.9999,
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
