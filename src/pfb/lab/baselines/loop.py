"""What a training loop asks of a method that goes by losses; by default all samples train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Criterion = Callable[[Tensor, Tensor], Tensor]


class Loop:
    """Train on every sample; a method overrides the one or two decisions it makes differently.

    A loop calls, in this order: :meth:`load` before each epoch, :meth:`choose` before each forward,
    :meth:`reduce` on the losses of each forward. ``share`` is the share of samples to leave out at
    that moment.

    Example:
        >>> import torch
        >>> loop = Loop()
        >>> loop.load(0.5, torch.Generator()) is None
        True
        >>> loop.reduce(torch.tensor([1.0, 3.0]), torch.tensor([0, 1]))
        tensor(2.)
    """

    needs_one_process = False
    """Whether its state lies in one process, so that several would disagree."""
    saved: tuple[str, ...] = ()  # names of its tensors

    def load(self, share: float, generator: Any) -> Tensor | None:
        """Indices of the samples that the epoch which begins loads, in any order; ``None``
        for all.
        """
        return None

    def choose(
        self, model: nn.Module, criterion: Criterion, image: Tensor, label: Tensor, share: float
    ) -> Tensor | None:
        """Positions ``[K]`` (int64) in the batch that train; ``None`` for all. A forward of its own
        is its own cost.
        """
        return None

    def reduce(self, losses: Tensor, index: Tensor) -> Tensor:
        """The scalar loss of the samples that trained, from one loss ``[K]`` and one data set index
        ``[K]`` each.
        """
        return losses.mean()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.saved:
            getattr(self, name).copy_(state[name])
