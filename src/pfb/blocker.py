"""The public handle: attach to a model, select the targets, step."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pfb.gate import Gate
from pfb.schedule import Schedule
from pfb.selection import Selection, parts

STATE_VERSION = 1
FORWARDS_WITHOUT_STEP = 200  # after so many blocked forwards without step() the user is told


class Blocker:
    """Stops redundant samples inside a model. Made by :func:`attach`; a plain object beside the
    model.

    Attributes:
        cut: name of the layer after which samples are stopped.
        shallow: the wiring, ``"reuse"`` or ``"recompute"``.
        schedule: the pruned share over training.
        total_steps: number of optimizer steps the schedule spans, or ``None``.
        estimator: the :class:`~pfb.DensityEstimator` behind the importance.
    """

    def __init__(
        self,
        gate: Gate,
        handles: list[RemovableHandle],
        cut: str,
        shallow: str,
        schedule: Schedule,
        total_steps: int | None,
        model: nn.Module,
    ) -> None:
        self.cut = cut
        self.shallow = shallow
        self.schedule = schedule
        self.total_steps = total_steps
        self.estimator = gate.estimator
        self._gate = gate
        self._steps = 0
        self._ever_reached = False
        self._told_to_step = False
        self._detached = False
        self._model = weakref.ref(model)
        # A static function and no reference to self: dropping the blocker frees the model of its
        # hooks.
        self._finalizer = weakref.finalize(self, _remove, handles)
        self._set_share()

    # What a training loop calls

    def select(self, *trees: Any) -> Any:
        """The samples of a batch that the latest forward kept.

        Args:
            trees: targets, weights, or any nested batch (tuples, lists, dicts, dataclasses) whose
                tensors have the batch as first dimension. Mixup's ``(y_a, y_b, lam)`` and soft
                labels ``[N, classes]`` need nothing special.

        Returns:
            For one argument the same structure with K of N rows, for several a tuple of them. The
            very objects that were passed in, if the latest forward pruned nothing (evaluation, no
            gradients, paused, or a share of 0).

        Raises:
            ValueError: a tensor whose first dimension is not the batch; the message names its place
                and both sizes.
            TypeError: a leaf that cannot be indexed by sample.
            RuntimeError: no forward has passed the cut yet.

        Example:
            >>> import torch, pfb
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
            >>> blocker = pfb.attach(model, cut="0", prune=0.4)
            >>> logits = model(torch.randn(10, 4))
            >>> logits.shape, blocker.select(torch.arange(10)).shape
            (torch.Size([6, 3]), torch.Size([6]))
        """
        selection = self.selection
        if selection is not None:
            return selection.select(*trees)
        if not (self._ever_reached or self._gate.reached) and self._expects_pruning():
            raise RuntimeError(
                f"select() was called before any forward passed the cut {self.cut!r}. Call the model first. If it was "
                "called, its hooks did not run: attach before torch.compile, and call the model itself, not its `.forward`. "
                "If a model of the same class without a blocker was compiled before, PyTorch ran its code again: set "
                "`torch._dynamo.config.skip_nnmodule_hook_guards = False` before compiling either."
            )
        return trees[0] if len(trees) == 1 else trees

    def step(self) -> None:
        """Move the density estimate by what the forwards since the last call kept, and the schedule
        by one step.

        Call it once beside ``optimizer.step()``. With several ranks it is one collective, in which
        all must take part; none while the share is 0.

        Raises:
            RuntimeError: no forward reached the cut since the last call, or the blocker is
                detached.
        """
        gate = self._gate
        if self._detached:
            raise RuntimeError("this blocker is detached; attach a new one to prune again")
        if gate.prunes:
            if not gate.reached:
                raise RuntimeError(
                    f"no forward reached the cut {self.cut!r} since the last step(). Call the model itself (not its "
                    "`.forward` or a part of it), attach before torch.compile, and call step() once per optimizer step."
                )
            if gate.reads == "density":
                self.estimator.apply()
        self._ever_reached = True
        gate.end_step()
        self._steps += 1
        self._set_share()

    @property
    def selection(self) -> Selection | None:
        """The latest forward's decision, ``.indices`` ascending int64 and ``.batch_size``; ``None``
        if it pruned nothing.

        Keep it to select targets after another forward has run: ``s = blocker.selection; ...;
        s.select(y)``.
        """
        self._warn_of_missing_step()
        return self._gate.selection

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let all samples pass inside this context, for instance in a teacher's or a calibrating
        forward.
        """
        with self._gate.paused():
            yield

    # What it knows

    @property
    def prune(self) -> float:
        """The share pruned at the current step."""
        if self.total_steps is not None and self._steps >= self.total_steps and self.schedule.needs_total_steps:
            return self.schedule.share(self.total_steps, self.total_steps)
        return self.schedule.share(self._steps, self.total_steps)

    @property
    def steps(self) -> int:
        """How many times :meth:`step` was called."""
        return self._steps

    @property
    def features(self) -> Tensor | None:
        """``[N, D]`` float32 features of the latest pruned batch; ``None`` before the first, and
        for a rule that reads none.
        """
        return self._gate.features

    @property
    def last_log_density(self) -> Tensor | None:
        """``[N]`` log density of the latest pruned batch under the current estimate; ``None``
        before the first.
        """
        features = self._gate.features
        return None if features is None or not self.estimator.ready else self.estimator.log_density(features)

    @property
    def stats(self) -> dict[str, float]:
        """Plain floats to log; reading them synchronises the device, training never does.

        ``pruned_share`` and ``kept_share`` of the latest forward, ``step``, ``centers_in_use``
        (those that more samples went to than the one they came from), and, once there is a density,
        its quantiles over the latest pruned batch in nats: ``log_density_05``, ``_25``, ``_50``,
        ``_75``, ``_95``.
        """
        selection = self._gate.selection
        kept = 1.0 if selection is None else selection.indices.numel() / max(selection.batch_size, 1)
        stats = {"step": float(self._steps), "kept_share": kept, "pruned_share": 1.0 - kept}
        counts = self.estimator.counts
        stats["centers_in_use"] = 0.0 if counts is None else float((counts > 1).sum())
        density = self.last_log_density
        if density is not None and density.isfinite().any():
            quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], device=density.device)
            values = torch.quantile(density[density.isfinite()], quantiles).tolist()
            stats |= {f"log_density_{q}": v for q, v in zip(("05", "25", "50", "75", "95"), values, strict=True)}
        return stats

    def __repr__(self) -> str:
        state = "detached" if self._detached else f"step={self._steps}"
        return f"Blocker(cut={self.cut!r}, prune={self.prune}, shallow={self.shallow!r}, {state})"

    # Lifetime and state

    def detach(self) -> None:
        """Remove all hooks: the model is what it was. Idempotent; leaving a ``with`` block does the
        same.
        """
        self._finalizer()
        self._gate.set_share(0)
        self._gate.enter(training=False)
        self._detached = True

    def __enter__(self) -> Blocker:
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the model, the optimizer and the random number
        generators' states.

        Holds tensors, numbers and strings only, so ``torch.load(weights_only=True)`` reads it.
        Tensors are references, as in PyTorch: save or copy before the next step.
        """
        return {
            "version": STATE_VERSION,
            "cut": self.cut,
            "shallow": self.shallow,
            "step": self._steps,
            "estimator": self.estimator.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken.

        Raises:
            ValueError: not a blocker's state, of another version, cut or number of centers. Nothing
                is changed then.
        """
        if not isinstance(state, dict) or not {"version", "cut", "shallow", "step", "estimator"} <= state.keys():
            keys = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
            raise ValueError(
                f"this is not a state of pfb.Blocker (got {keys}); pass what `Blocker.state_dict()` returned"
            )
        if state["version"] != STATE_VERSION:
            raise ValueError(f"the state has version {state['version']!r}, this pfb reads version {STATE_VERSION}")
        for name, value in (("cut", self.cut), ("shallow", self.shallow)):
            if state[name] != value:
                raise ValueError(
                    f"the state was saved with {name}={state[name]!r}, this blocker has {name}={value!r}: attach as before"
                )
        self.estimator.load_state_dict(state["estimator"])
        self._steps = state["step"]
        self._gate.end_step()
        self._set_share()

    # Inside

    def _set_share(self) -> None:
        self._gate.set_share(parts(self.prune))

    def _expects_pruning(self) -> bool:
        model = self._model()
        return self._gate.prunes and torch.is_grad_enabled() and model is not None and model.training

    def _warn_of_missing_step(self) -> None:
        if self._gate.blocked_forwards >= FORWARDS_WITHOUT_STEP and not self._told_to_step:
            self._told_to_step = True
            warnings.warn(
                f"{FORWARDS_WITHOUT_STEP} forwards were pruned without a call of step(), so the density estimate never "
                "moves. Add `blocker.step()` beside `optimizer.step()`.",
                stacklevel=3,
            )


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
