"""Deliberately odd small models."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class SmallNet(nn.Module):
    """Convolutions with GroupNorm: no batch statistics, so both wirings must agree to rounding."""

    def __init__(self, norm: str = "group") -> None:
        super().__init__()

        def normed(width: int) -> nn.Module:
            return nn.GroupNorm(2, width) if norm == "group" else nn.BatchNorm2d(width)

        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), normed(8), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), normed(12), nn.ReLU())
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class Bypass(nn.Module):
    """An input that reaches the deep part without passing the cut, and labels inside the
    forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shallow = nn.Linear(6, 8)
        self.deep = nn.Linear(8, 3)

    def forward(self, x: Tensor, gain: Tensor | None = None, labels: Tensor | None = None) -> Any:
        logits = self.deep(self.shallow(x).tanh())
        if gain is not None:
            logits = logits * gain[:, None]
        if labels is not None:
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        return logits


class ClassWeighted(nn.Module):
    """An input that all samples share although it may be as long as the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.shallow = nn.Linear(6, 8)
        self.deep = nn.Linear(8, 4)

    def forward(self, x: Tensor, class_weight: Tensor) -> Tensor:
        return self.deep(self.shallow(x)) * class_weight


class TwiceCalled(nn.Module):
    """A layer that runs twice in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(x).relu()))


@dataclass
class Encoded:
    hidden: Tensor
    length: int
    extra: Tensor | None = None


class Structured(nn.Module):
    """A cut whose output is a tuple, dict or dataclass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.encoder = _Encoder(kind)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.encoder(x)
        hidden = out[0] if isinstance(out, tuple) else out["hidden"] if isinstance(out, dict) else out.hidden
        return self.head(hidden.mean(1))


class _Encoder(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.proj = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Any:
        hidden = self.proj(x)
        if self.kind == "tuple":
            return hidden, None
        if self.kind == "dict":
            return {"mask": torch.ones(len(x), dtype=torch.int64), "hidden": hidden}
        return Encoded(hidden, length=x.size(1))


class Checkpointed(nn.Module):
    """Activation checkpointing around the cut."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.block = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        return self.head(checkpoint(self._inner, x, use_reentrant=self.use_reentrant).tanh())

    def _inner(self, x: Tensor) -> Tensor:
        return self.block(x).sin()


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width), nn.Tanh()]
    return nn.Sequential(*layers[:-1])
