"""The handle of the paper's tool: select the targets, step."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pfb.blocking.gate import UNKNOWN_SHARE, Gate
from pfb.density.kernels import quantiles
from pfb.density.moving_centers import MovingCenters
from pfb.features.cut import CutFeatures
from pfb.selection.rules import RuleCall, Uniform
from pfb.selection.schedule import Progress, Schedule
from pfb.selection.selection import Selection, parts
from pfb.selection.views import Views
from pfb.utils import distributed as sync
from pfb.utils import states

FORWARDS_WITHOUT_STEP = 20  # after so many blocked forwards without step() the user is warned
VERSION = 3
STATE = {"version", "cut", "features", "step", "density"}


class Blocker(Progress):
    """Stops redundant samples inside a model: a plain object beside it, made by :func:`attach`. It
    stays attached until :meth:`detach`, also if nobody keeps it.

    Attributes:
        cut: name of the layer after which samples are stopped.
        density: what the rule reads.
        detached: whether its hooks are gone, so that it prunes nothing any more.
        schedule: the pruned share over training.
        steps: how many times :meth:`step` was called.
    """

    def __init__(self, gate: Gate, handles: list[RemovableHandle], progress: Progress, model: nn.Module) -> None:
        self.cut = gate.cut
        self.density: Any = gate.density  # a Density; of which kind, the user knows
        self._gate = gate
        super().__init__(progress.schedule, progress.total_steps)
        self.detached = self._ever_reached = self._checked_ranks = False
        self._model = weakref.ref(model)
        self._handles = handles
        gate.blocker = self  # the hooks keep the gate

    # What a training loop calls

    def select(self, *trees: Any, dim: int = 0) -> Any:
        """The samples of a batch that the latest forward kept.

        Args:
            trees: targets, or any nested batch (tuples, lists, dicts, dataclasses) of tensors whose
                first dimension is the batch, soft labels and mixup's ``(y_a, y_b, lam)``, too.
                Lists with one item per sample are selected, which synchronises the device.
            dim: the batch's dimension in their tensors.

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
        selection = self._selection(labels=True)
        if selection is not None:
            return selection.select(*trees, dim=dim, seen=self._gate.lists)
        if not self.detached and not (self._ever_reached or self._gate.ran) and self._expects_pruning():
            raise RuntimeError(
                f"select() was called before any forward passed the cut {self.cut!r}. Call the model first. If it was "
                "called, its hooks did not run: attach before torch.compile, and call the model itself, not its "
                "`.forward`. If a model of the same class without a blocker was compiled before, PyTorch ran its code "
                "again: set `torch._dynamo.config.skip_nnmodule_hook_guards = False` before compiling either."
            )
        return trees[0] if len(trees) == 1 else trees

    def step(self) -> None:
        """Move the density by what the forwards since the last call brought, and the schedule by
        one step.

        Call it once beside ``optimizer.step()``. With several ranks it is one collective (one more
        in the first, which compares their settings), in which all must take part; none while the
        share is 0. Warns once, with the cause, if a step with a share above 0 pruned nothing, and
        if there were more steps than ``total_steps``.

        Raises:
            RuntimeError: no forward reached the cut since the last call, or one did without passing
                the model's hooks; the ranks are at different steps; or the blocker is detached.
        """
        gate = self._gate
        if self.detached:
            raise RuntimeError(
                "this blocker is detached, or the copy of one (deepcopy, pickle, a spawned process), so nothing is "
                "pruned; attach a new one in this process to prune again"
            )
        if not (gate.ran or (gate.entered and self._ever_reached)):
            raise RuntimeError(
                f"no forward reached the cut {self.cut!r} since the last step(). Call the model itself (not its "
                "`.forward` or a part of it), attach before torch.compile, and call step() once per optimizer step."
            )
        will_prune = gate.active or (not self._ever_reached and self.schedule.prune > 0)
        if will_prune and not gate.entered:
            raise RuntimeError(
                f"the cut {self.cut!r} ran, but not within a call of the model that the blocker is attached to, so "
                "nothing was pruned. Call the model itself, not its `.forward` or its parts; or attach to the part "
                "that is called (with Lightning: to `self.net`, not to the LightningModule)."
            )
        if gate.active:
            if (cause := gate.idle_cause()) is not None:
                gate.diagnostics.warn(
                    "nothing", f"a step with a share of {self.prune:g} pruned nothing, since {cause}."
                )
            if not self._checked_ranks:
                self._checked_ranks = True
                ours = self._settings(self.density, cut=self.cut, features=gate.reader.name)
                sync.check_settings(sync.everybodys(ours), "attach with the same on all ranks")
            if gate.rule.reads == "density":
                self.density.apply()
        self._ever_reached = self._ever_reached or gate.reached
        gate.end_step()
        self._advance()

    @property
    def selection(self) -> Selection | None:
        """The latest forward's decision, ``.indices`` ascending int64 and ``.batch_size``; ``None``
        if there was nothing to decide: the share was 0, or the model was not in training.

        Keep it to select targets after another forward has run: ``s = blocker.selection; ...;
        s.select(y)``.

        Raises:
            RuntimeError: two threads run the model within one step, and it is the other's.
        """
        return self._selection()

    @contextlib.contextmanager
    def decide_once(self) -> Iterator[None]:
        """The first forward inside this context decides, and the others take the same samples.

        For one batch that is run several times (SAM, LBFGS), and for several batches whose rows
        belong together (the two sides of a siamese net).

        Raises:
            ValueError: a later forward has another number of rows.

        Example:
            >>> import torch, pfb
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
            >>> blocker = pfb.attach(model, cut="0", prune=0.4)
            >>> with blocker.decide_once():
            ...     a, b = model(torch.randn(10, 4)), model(torch.randn(10, 4))
            >>> a.shape, b.shape
            (torch.Size([6, 3]), torch.Size([6, 3]))
        """
        before, self._gate.once = self._gate.once, []
        try:
            yield
        finally:
            self._gate.once = before

    # What it knows

    @property
    def features(self) -> Tensor | None:
        """``[N, D]`` float32 features of the latest pruned batch; ``None`` before the first, and
        for a rule that reads none.
        """
        return self._gate.features

    @property
    def last_log_density(self) -> Tensor | None:
        """``[N]`` log density of the latest pruned batch; ``None`` before the first."""
        features = self._gate.features
        return None if features is None or not self.density.ready else self.density.log_density(features)

    @property
    def stats(self) -> dict[str, float]:
        """Plain floats to log; reading them synchronises the device, training never does.

        ``pruned_share`` and ``kept_share`` of the latest forward in training (an evaluation since
        then does not count), ``step``, the density's own (``centers_in_use``, to which more samples
        went than the one they came from; ``remembered``) and, once there is one, its quantiles over
        the latest pruned batch in nats: ``log_density_05``, ``_25``, ``_50``, ``_75``, ``_95``.
        """
        kept = 1.0 if self._gate.latest is None else self._gate.latest[0] / max(self._gate.latest[1], 1)
        stats = {"step": float(self.steps), "kept_share": kept, "pruned_share": 1.0 - kept}
        stats |= self.density.summary()
        density = self.last_log_density
        return stats if density is None else stats | quantiles(density)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_detached, (self.cut, self.schedule, self.total_steps))

    def __repr__(self) -> str:
        state = "detached" if self.detached else f"step={self.steps}"
        return f"Blocker(cut={self.cut!r}, prune={self.prune}, {state})"

    # Lifetime and state

    def detach(self) -> None:
        """Remove all hooks: the model is what it was. Leaving a ``with`` block does the same."""
        for handle in self._handles:
            handle.remove()
        self._gate.set_share(0, is_paused=False)
        self._gate.enter(training=False)
        self.detached = True

    def __enter__(self) -> Blocker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the model, the optimizer and the random number
        generators' states.

        Holds tensors, numbers and strings only, so ``torch.load(weights_only=True)`` reads it.
        Tensors are references, as in PyTorch: save or copy before the next step.
        """
        return {
            "version": VERSION,
            "cut": self.cut,
            "features": self._gate.reader.name,
            "step": self.steps,
            "density": self.density.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken.

        Raises:
            ValueError: not a blocker's state, or of another version, cut, features or density.
                Nothing is changed then.
        """
        states.check(state, STATE, VERSION, "pfb.Blocker", cut=self.cut, features=self._gate.reader.name)
        self.density.load_state_dict(state["density"])
        self.steps = state["step"]
        self._gate.end_step()
        self._share_may_change()

    # Inside

    def _selection(self, labels: bool = False) -> Selection | None:
        if self._gate.blocked_forwards >= FORWARDS_WITHOUT_STEP:
            self._gate.diagnostics.warn(
                "step",
                f"{FORWARDS_WITHOUT_STEP} forwards were pruned without a call of step(), so the density estimate never "
                "moves. Add `blocker.step()` beside `optimizer.step()`.",
            )
        self._gate.check_thread()
        self._gate.diagnostics.read(labels)
        return self._gate.selection

    def _share_may_change(self) -> None:
        self._gate.set_share(parts(self.prune) if self._is_known else UNKNOWN_SHARE, self._is_paused)

    def _expects_pruning(self) -> bool:
        model = self._model()
        return self._gate.prunes and torch.is_grad_enabled() and model is not None and model.training


def _detached(cut: str, schedule: Schedule, total_steps: int | None) -> Blocker:
    gate = Gate(RuleCall.of(Uniform()), MovingCenters(), CutFeatures(()), cut, Views())
    blocker = Blocker(gate, [], Progress(schedule, total_steps), nn.Identity())
    blocker.detach()
    return blocker
