"""Forwards that activation checkpointing runs again, and the decisions they must repeat."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 1024  # forwards between two steps that are remembered


@dataclass(eq=False)
class _Forward:
    """One forward's features at the cut and its decision; ``None``: all passed."""

    features: Tensor
    indices: Tensor | None
    replayed: bool = False


class Replays:
    """The forwards since the last step."""

    def __init__(self) -> None:
        self._forwards: deque[_Forward] = deque(maxlen=MOST)

    def note(self, features: Tensor, indices: Tensor | None) -> None:
        """Remember what a forward with gradients decided. Eager only."""
        self._forwards.append(_Forward(features, indices))

    def decision(self, features: Tensor) -> Tensor | None:
        """What the forward decided that is running again; ``None``: all passed.

        Several forwards within one step are told apart by their features, and equal ones by the
        order in which backward visits them: the latest first.

        Raises:
            RuntimeError: no such forward is known.
        """
        candidates = [f for f in reversed(self._forwards) if f.features.shape == features.shape]
        if not candidates:
            raise RuntimeError(
                "activation checkpointing runs a forward again whose first run pruned nothing, so its gradients "
                "would be wrong. Use `torch.utils.checkpoint.checkpoint(..., use_reentrant=False)`, and call "
                "`blocker.step()` only after `backward()`."
            )
        if len(candidates) > 1 or features.device.type == "cpu":  # elsewhere the host would have to wait
            apart = torch.stack([_apart(f.features, features) for f in candidates]).tolist()
            if min(apart) > 1:
                raise RuntimeError(
                    "activation checkpointing runs a forward again that is none of those since the last step, so its "
                    "decision is not known any more. Call `blocker.step()` only after `backward()`; if the forward is "
                    "random, leave `preserve_rng_state` on."
                )
            nearest = [f for f, d in zip(candidates, apart, strict=True) if d == min(apart)]
            candidates = [f for f in nearest if not f.replayed] or nearest
        candidates[0].replayed = True
        return candidates[0].indices

    def clear(self) -> None:
        """Forget the step that ends."""
        self._forwards.clear()


def _apart(noted_ND: Tensor, features_ND: Tensor) -> Tensor:
    """How far two batches' features are apart; 1 is more than rounding does, and less than other
    samples do.
    """
    finite_ND = noted_ND.isfinite() & features_ND.isfinite()
    distance = torch.where(finite_ND, (noted_ND - features_ND).abs(), 0.0).mean()
    noted_ND = torch.where(finite_ND, noted_ND, 0.0)
    return distance / (0.5 * noted_ND.std(0, correction=0).mean() + 0.01 * noted_ND.abs().mean() + 1e-30)


def in_backward() -> bool:
    """Whether this thread is inside a running backward pass, where a forward is run again by
    activation checkpointing.

    ``torch._C._current_graph_task_id`` is private; no public function tells it, and
    ``torch.utils.checkpoint`` rests on it too.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
