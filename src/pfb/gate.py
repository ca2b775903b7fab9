"""The decision at the cut: from a layer's output to the samples that go on. No hooks here; see
``wiring``.

The code below also runs inside ``torch.compile``: while compiling it only reads whole numbers and
flags that stay fixed within a ratio level, and does not count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfb.estimator import DensityEstimator
from pfb.features import batched_tensor, fingerprint, infer_channel_dim, pool, project, random_projection
from pfb.importance import takes_density
from pfb.selection import Selection, keep_count_of_parts, keep_largest

Importance = Callable[..., Tensor]


@dataclass(eq=False)
class _Forward:
    """One forward's features at the cut and its decision; ``None``: all passed."""

    features: Tensor
    indices: Tensor | None
    replayed: bool = False


class Gate:
    """What stands at the cut of one model.

    Attributes:
        pruned_parts: the share to prune now, in parts of ``selection.PRECISION``.
        paused: whether all samples pass for the time being.
        armed: whether the forward now running prunes; set when it enters the model.
        selection: the latest forward's decision; ``None`` if it pruned nothing.
    """

    def __init__(
        self,
        importance: Importance,
        estimator: DensityEstimator,
        features: Callable[[Any], Tensor] | None,
        feature_dim: int | None,
        channel_dim: int | None,
        channel_layers: tuple[tuple[int, int], ...],
    ) -> None:
        self.importance = importance
        self.reads_density = takes_density(importance)
        self.reads_features: bool = getattr(importance, "reads_features", True)
        self.estimator = estimator
        self.pruned_parts = 0
        self.paused = False
        self.armed = False
        self.scoring = False  # is a pass running that only scores?
        self.passed = False  # has this forward met the cut?
        self.reached = False  # has any forward met the cut since the last step?
        self.blocked_forwards = 0
        self.last_features: Tensor | None = None
        self._features, self._feature_dim = features, feature_dim
        self._channel_dim, self._channel_layers = channel_dim, channel_layers
        self._projection: Tensor | None = None
        self._indices: Tensor | None = None
        self._batch_size = 0
        self._with_grad = False
        self._forwards: deque[_Forward] = deque(maxlen=1024)  # since the last step, for activation checkpointing

    @property
    def selection(self) -> Selection | None:
        return None if self._indices is None else Selection(self._indices, self._batch_size)

    def enter(self, training: bool) -> bool:
        """A forward enters the model: does it prune?"""
        self._with_grad = torch.is_grad_enabled()
        self.armed = training and self._with_grad and not self.paused and self.pruned_parts > 0
        self.passed = False
        if not in_backward():
            self._indices = None
        return self.armed

    def leave(self) -> None:
        """The forward leaves the model: layers called on their own from here on are left alone."""
        self.armed = self._with_grad = False

    @torch.no_grad()
    def decide(self, output: Any) -> Tensor:
        """Indices of the samples that go on, given the cut's output."""
        features_ND = self.features(output)
        n = features_ND.size(0)
        if self.reads_density:
            importance_N = self.importance(features_ND, self.estimator)
        else:
            importance_N = self.importance(features_ND)
        if importance_N.shape != (n,):
            raise ValueError(
                f"`importance` must return one value per sample, shape ({n},) (got {tuple(importance_N.shape)})"
            )
        indices_K = keep_largest(importance_N, keep_count_of_parts(n, self.pruned_parts))
        if self.reads_density:
            self.estimator.accumulate(features_ND.index_select(0, indices_K))
        self._indices, self._batch_size = indices_K, n
        self.last_features = features_ND if self.reads_features else None
        if not torch.compiler.is_compiling():
            self.blocked_forwards += 1
            self._forwards.append(_Forward(features_ND, indices_K))
        return indices_K

    def let_pass(self, output: Any) -> None:
        """Remember a forward with gradients that was not armed, so that a replay of it is not
        mistaken for another.
        """
        with_grad = self._with_grad or torch.is_grad_enabled()
        if self.pruned_parts > 0 and with_grad and not torch.compiler.is_compiling():
            self._forwards.append(_Forward(self.features(output), None))

    @torch.no_grad()
    def replay(self, output: Any) -> Tensor | None:
        """The decision of the forward that activation checkpointing is running again, which must be
        the same one.

        Several forwards within one step are told apart by their features, and equal ones by the
        order in which backward visits them: the latest first.
        """
        if self.pruned_parts == 0:
            return None
        features_ND = self.features(output)
        candidates = [f for f in reversed(self._forwards) if f.features.shape == features_ND.shape]
        if not candidates:
            raise RuntimeError(
                "activation checkpointing runs a forward again whose first run pruned nothing, so its gradients would be "
                "wrong. Use `torch.utils.checkpoint.checkpoint(..., use_reentrant=False)`, and call `blocker.step()` "
                "only after `backward()`."
            )
        if len(candidates) > 1:
            apart = torch.stack([(f.features - features_ND).abs().sum() for f in candidates])
            distances = apart.nan_to_num(torch.inf).tolist()
            nearest = [f for f, d in zip(candidates, distances, strict=True) if d == min(distances)]
            candidates = [f for f in nearest if not f.replayed] or nearest
        candidates[0].replayed = True
        return candidates[0].indices

    def features(self, output: Any) -> Tensor:
        """Float32 features ``[N, D]`` of the cut's output, without graph.

        A criterion that reads none gets ``[N, 1]``, nothing to choose by, of the cut's output or of
        the model's input.
        """
        if not self.reads_features:
            return fingerprint(output if isinstance(output, Tensor) else batched_tensor(output))
        if self._features is not None:
            features_ND = self._features(output)
            if not isinstance(features_ND, Tensor) or features_ND.dim() != 2:
                shape = tuple(features_ND.shape) if isinstance(features_ND, Tensor) else type(features_ND).__name__
                raise ValueError(f"`features` must return a tensor [N, D] (got {shape})")
            return features_ND.detach().float()
        x = batched_tensor(output)
        if self._channel_dim is None:
            self._channel_dim = infer_channel_dim(x.shape, self._channel_layers)
        pooled_NC = pool(x, self._channel_dim)
        if self._feature_dim is None or pooled_NC.size(1) <= self._feature_dim:
            return pooled_NC
        if self._projection is None or self._projection.device != pooled_NC.device:
            self._projection = random_projection(pooled_NC.size(1), self._feature_dim, pooled_NC.device)
        with torch.autocast(pooled_NC.device.type, enabled=False):
            return project(pooled_NC, self._projection)

    def end_step(self) -> None:
        """Forget what belonged to the step that ends."""
        self._forwards.clear()
        self.reached = False
        self.blocked_forwards = 0


def in_backward() -> bool:
    """Whether this thread is inside a running backward pass, where only activation checkpointing
    calls a forward.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1
