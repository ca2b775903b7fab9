"""The training step that the benchmarks measure: a fresh model by name, pruned or not, on random
images.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pfb
from pfb.lab.train.models import build
from pfb.measure import count_saved_bytes


class Setup(Protocol):
    """What a benchmark's settings say of its steps."""

    @property
    def image_size(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def precision(self) -> str: ...
    @property
    def channels_last(self) -> bool: ...


class Step:
    """One optimizer step; calling it takes the step on a batch.

    Args:
        setup: the benchmark's settings.
        device: where it runs.
        model: as in ``pfb train``.
        attach: arguments of ``pfb.attach``; ``None`` for a step that prunes nothing.
        compile: ``no``, or a mode of ``torch.compile``.
    """

    def __init__(
        self, setup: Setup, device: torch.device, model: str, attach: dict[str, Any] | None = None, compile: str = "no"
    ) -> None:
        torch.manual_seed(0)
        self.setup, self.device = setup, device
        self.layout = torch.channels_last if setup.channels_last else torch.contiguous_format
        self.model = build(model, setup.classes, 3, setup.image_size)
        self.model = self.model.to(device, memory_format=self.layout)  # type: ignore[call-overload]
        self.blocker = None if attach is None else pfb.attach(self.model, **attach)
        if compile != "no":
            self.model.compile(dynamic=False, mode=None if compile == "default" else compile)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=setup.precision == "bf16")

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """Random images ``[n, 3, S, S]`` and labels ``[n]`` as the model takes them."""
        image = torch.randn(n, 3, self.setup.image_size, self.setup.image_size, device=self.device)
        return image.to(memory_format=self.layout), torch.randint(self.setup.classes, (n,), device=self.device)

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        with self.autocast:
            logits = self.model(image)
            return F.cross_entropy(logits, self.blocker.select(label) if self.blocker else label)

    def __call__(self, image: Tensor, label: Tensor) -> None:
        self.loss(image, label).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.blocker:
            self.blocker.step()

    def saved_bytes(self, image: Tensor, label: Tensor) -> int:
        """What autograd keeps for the backward pass of a batch."""
        with count_saved_bytes() as saved:
            self.loss(image, label)
        return saved.total


def first_block(model: nn.Module, cut: str) -> str | None:
    """The first block of the stage that ends at the cut, if the stage is several blocks in
    a row.
    """
    stage = model.get_submodule(cut)
    return f"{cut}.0" if isinstance(stage, nn.Sequential) and len(stage) > 1 else None
