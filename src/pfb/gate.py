"""The decision at the cut: from a layer's output to the samples that go on. No hooks here; see
``wiring``.

The code below also runs inside ``torch.compile``: while compiling it only reads whole numbers and
flags that stay fixed within a ratio level, and does not count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pfb.estimator import DensityEstimator
from pfb.features import FeatureReader, batched_tensor, channel_layers, fingerprint
from pfb.importance import Importance, reads_of
from pfb.replay import Replays, in_backward
from pfb.selection import Selection, keep_count_of_parts, keep_largest


class Gate:
    """What stands at the cut of one model. Hooks and benchmarks call its methods; nobody sets its
    fields.

    Args:
        importance: the rule.
        estimator: the density it reads.
        reader: from the cut's output to features.

    Attributes:
        armed: whether the forward now running prunes; set when it enters the model.
        scoring: whether a pass is running that only scores.
        reached: whether any forward met the cut since the last step.
        selection: the latest forward's decision; ``None`` if it pruned nothing.
        features: ``[N, D]`` of the latest pruned batch; ``None`` before it.
        blocked_forwards: pruned forwards since the last step.
    """

    def __init__(self, importance: Importance, estimator: DensityEstimator, reader: FeatureReader) -> None:
        self.importance, self.estimator, self.reader = importance, estimator, reader
        self.reads = reads_of(importance)
        self.armed = self.scoring = self.reached = False
        self.blocked_forwards = 0
        self.features: Tensor | None = None
        self.replays = Replays()
        self._pruned_parts = 0
        self._is_paused = False
        self._met = False  # has this forward met the cut?
        self._with_grad = False
        self._indices: Tensor | None = None
        self._batch_size = 0

    # Between forwards

    @property
    def selection(self) -> Selection | None:
        return None if self._indices is None else Selection(self._indices, self._batch_size)

    @property
    def prunes(self) -> bool:
        """Whether the share is above 0 and nobody has paused."""
        return self._pruned_parts > 0 and not self._is_paused

    def set_share(self, pruned_parts: int) -> None:
        """The share to prune from now on, in parts of ``selection.PRECISION``."""
        self._pruned_parts = pruned_parts

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """All samples pass inside this context."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def end_step(self) -> None:
        """Forget what belonged to the step that ends."""
        self.replays.clear()
        self.reached = False
        self.blocked_forwards = 0

    # One forward, in this order

    def enter(self, training: bool) -> bool:
        """A forward enters the model: does it prune?"""
        self._with_grad = torch.is_grad_enabled()
        self.armed = training and self._with_grad and self.prunes
        self._met = False
        if not in_backward():
            self._indices = None
        return self.armed

    @contextlib.contextmanager
    def scoring_pass(self) -> Iterator[None]:
        """Inside, the cut ends the pass."""
        self.scoring = True
        try:
            yield
        finally:
            self.scoring = False

    def meet_cut(self) -> bool:
        """The forward meets the cut; whether one that prunes did so before."""
        again, self._met, self.reached = self.armed and self._met, self.armed, True
        return again

    @torch.no_grad()
    def decide(self, output: Any) -> Tensor:
        """Indices of the samples that go on, given the cut's output."""
        features_ND = self.read(output)
        n = features_ND.size(0)
        importance_N = (
            self.importance(features_ND, self.estimator) if self.reads == "density" else self.importance(features_ND)
        )
        if importance_N.shape != (n,):
            raise ValueError(
                f"`importance` must return one value per sample, shape ({n},) (got {tuple(importance_N.shape)})"
            )
        indices_K = keep_largest(importance_N, keep_count_of_parts(n, self._pruned_parts))
        if self.reads == "density":
            self.estimator.accumulate(features_ND.index_select(0, indices_K))
        self._indices, self._batch_size = indices_K, n
        self.features = None if self.reads == "nothing" else features_ND
        if not torch.compiler.is_compiling():
            self.blocked_forwards += 1
            self.replays.note(features_ND, indices_K)
        return indices_K

    def let_pass(self, output: Any) -> None:
        """Remember a forward with gradients that was not armed, so that a replay of it is not
        mistaken for another.
        """
        with_grad = self._with_grad or torch.is_grad_enabled()
        if self._pruned_parts > 0 and with_grad and not torch.compiler.is_compiling():
            self.replays.note(self.read(output), None)

    def leave(self) -> None:
        """The forward leaves the model: layers called on their own from here on are left alone."""
        self.armed = self._with_grad = False

    def replay(self, output: Any) -> Tensor | None:
        """The decision of the forward that activation checkpointing is running again."""
        return None if self._pruned_parts == 0 else self.replays.decision(self.read(output))

    @torch.no_grad()
    def read(self, output: Any) -> Tensor:
        """Float32 features ``[N, D]`` of the cut's output, without graph.

        A rule that reads none gets ``[N, 1]``, nothing to choose by, of the cut's output or of the
        model's input.
        """
        if self.reads == "nothing":
            return fingerprint(output if isinstance(output, Tensor) else batched_tensor(output))
        return self.reader(output)


def gate_for(
    model: nn.Module, cut: str, importance: Importance, estimator: DensityEstimator, pruned_parts: int = 0
) -> Gate:
    """A gate without hooks, as planner and benchmarks use it.

    Example:
        >>> import torch, pfb
        >>> from pfb.selection import parts
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
        >>> gate = gate_for(model, "0", pfb.Uniform(), pfb.DensityEstimator(), parts(0.4))
        >>> gate.decide(torch.randn(10, 8)).shape
        torch.Size([6])
    """
    gate = Gate(importance, estimator, FeatureReader(channel_layers(model.get_submodule(cut), model)))
    gate.set_share(pruned_parts)
    return gate
