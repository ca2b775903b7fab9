"""The decision at the cut: from a layer's output to the samples that go on. No hooks here; see
``reuse``.

The code below also runs inside ``torch.compile``: while compiling it only reads whole numbers and
flags that stay fixed within a ratio level, and does not count.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from pfb.blocking.diagnostics import Diagnostics
from pfb.blocking.replay import Replays, in_backward
from pfb.density.kernels import Density
from pfb.features.cut import CutFeatures, batched_tensor, fingerprint
from pfb.selection.choice import choose, collect
from pfb.selection.rules import RuleCall
from pfb.selection.selection import Selection
from pfb.selection.views import Views

UNKNOWN_SHARE = -1  # until `total_steps` is
IDLE_FORWARDS = 200  # after so many forwards with gradients of which none was pruned the user is told


class Gate:
    """What stands at the cut of one model. Hooks call its methods.

    Args:
        rule: gives the importance.
        density: what the rule reads.
        reader: from the cut's output to features.
        cut: the cut's name.
        views: which rows belong together.

    Attributes:
        armed: whether the forward at hand prunes.
        reached, entered, decided: whether any forward since the last step met the cut, entered the
            model, was pruned.
        selection: the latest forward's decision; ``None`` if it pruned nothing.
        features: ``[N, D]`` of the latest pruned batch; ``None`` before it.
        latest: kept and all rows of the latest forward in training; ``None`` if it pruned nothing.
        blocked_forwards: pruned forwards since the last step.
        diagnostics: what the user is warned of, each once.
        once: inside ``decide_once()`` the decision and the number of rows, once taken.
        lists: what has been learned of lists in batches, see :func:`pfb.selection.select.select`.
    """

    def __init__(self, rule: RuleCall, density: Density, reader: CutFeatures, cut: str, views: Views) -> None:
        self.rule, self.density, self.reader, self.cut, self.views = rule, density, reader, cut, views
        self.armed = self.reached = self.entered = self.decided = False
        self.blocked_forwards = 0
        self.features: Tensor | None = None
        self.latest: tuple[int, int] | None = None
        self.lists: dict[str, bool] = {}
        self.blocker: Any = None  # whoever owns this gate lives as long as the hooks
        self.replays = Replays()
        self.diagnostics = Diagnostics()
        self.once: list[tuple[Tensor, int]] | None = None
        self._pruned_parts = 0
        self._is_paused = self._was_paused = self._saw_no_grad = False
        self._met = False  # has this forward met the cut?
        self._with_grad = False
        self._indices: Tensor | None = None
        self._batch_size = 0
        self._inputs: list[tuple[TensorWeakRef, int]] = []  # of pruned forwards since the last step, those alive
        self._threads: list[int] = []  # that ran pruned forwards since the last step, the latest last
        self._idle = 0

    # Between forwards

    @property
    def selection(self) -> Selection | None:
        return None if self._indices is None else Selection(self._indices, self._batch_size)

    @property
    def ran(self) -> bool:
        """Whether a forward ran since the last step, hooks and all. One that left the cut out did,
        unless it may be compiled code that knows no hooks.
        """
        return self.reached or (self.entered and not _compiled_anything())

    @property
    def active(self) -> bool:
        """Whether the share is above 0."""
        return self._pruned_parts > 0

    @property
    def prunes(self) -> bool:
        """Whether the share is above 0 and nobody has paused."""
        return self.active and not self._is_paused

    def set_share(self, pruned_parts: int, is_paused: bool) -> None:
        """The share to prune from now on, in parts of ``selection.PRECISION``, if not paused."""
        self._pruned_parts, self._is_paused = pruned_parts, is_paused

    def end_step(self) -> None:
        """Forget what belonged to the step that ends."""
        self.replays.clear()
        self._inputs.clear()
        self.reached = self.entered = self.decided = self._was_paused = self._saw_no_grad = False
        self._threads.clear()
        self.diagnostics.end_step()
        self.blocked_forwards = 0

    def idle_cause(self) -> str | None:
        """Why a step with a share above 0 pruned nothing; ``None`` if that was asked for."""
        if self.decided or self._was_paused or not self.entered:
            return None
        if not self.reached:
            left_out = "the cut did not run in it: the forward left it out (LayerDrop, a branch not taken)"
            if _compiled_anything():
                left_out += (
                    ", or PyTorch ran what it had compiled of a model of the same class without this blocker (set "
                    "`torch._dynamo.config.skip_nnmodule_hook_guards = False` before compiling either)"
                )
            return f"{left_out}. pfb.BatchPruner(features=pfb.Shallow(model)) scores where no layer is dropped"
        if self._saw_no_grad:
            return "gradients were disabled in its forwards"
        return "the model was in evaluation mode: call model.train(); its frozen layers may stay in .eval()"

    # One forward, in this order

    def enter(self, training: bool) -> bool:
        """A forward enters the model: does it prune?"""
        self._with_grad = torch.is_grad_enabled()
        if self._pruned_parts == UNKNOWN_SHARE and training and self._with_grad:
            raise RuntimeError(
                "`total_steps` is needed by `pfb.window`: pass it to attach, or set `blocker.total_steps = len(loader) "
                "* epochs` before training (got None)"
            )
        self.armed = training and self._with_grad and self.prunes
        if self.armed and _is_tracing():
            raise RuntimeError("a model that prunes cannot be traced: call blocker.detach() or model.eval() first")
        self._met = False
        self.entered = True
        if self._is_paused:
            self._was_paused = True
        if not self._with_grad:
            self._saw_no_grad = True
        if not in_backward():
            self._indices = None
            if training and self._with_grad and not self.active:
                self.latest = None
        return self.armed

    def look_at_input(self, x: Tensor) -> None:
        """Tell what a pruned forward's input gives away. Eager only."""
        if in_backward() or torch.compiler.is_compiling():
            return
        self._note_thread()
        if x.requires_grad and x.is_leaf:
            self.diagnostics.warn(
                "leaf",
                "the model's input requires gradients; those of stopped samples are zero. For attacks, penalties and "
                "saliency use `with blocker.paused():`, or average over `blocker.selection.indices` only.",
            )
        self._inputs = [(seen, version) for seen, version in self._inputs if seen() is not None]
        this = TensorWeakRef(x), 0 if x.is_inference() else x._version  # a buffer may be filled anew
        if self.once is None and any(seen() is x and version == this[1] for seen, version in self._inputs):
            self.diagnostics.warn(
                "again",
                "one batch was run twice within a step (SAM, LBFGS, two calls of a siamese net), and each run decides "
                "anew. Put both inside `with blocker.decide_once():` so that the same samples go on.",
            )
        self._inputs.append(this)

    def _note_thread(self) -> None:
        asking = threading.get_ident()
        self._threads = [*(thread for thread in self._threads if thread != asking), asking]

    def check_thread(self) -> None:
        """The decision at hand must be of the thread that asks for it, if that has run any.

        Raises:
            RuntimeError: another thread has run the model since.
        """
        if self._indices is not None and threading.get_ident() in self._threads[:-1]:
            raise RuntimeError(
                "this model is run by two threads within one step, and the latest decision is the other's. Give every "
                "thread a model and a blocker of its own."
            )

    def meet_cut(self, training: bool) -> bool:
        """The forward meets the cut; whether one that prunes did so before."""
        self.armed = self.armed and training and self.prunes  # a KeyboardInterrupt leaves it armed
        again, self._met, self.reached = self.armed and self._met, self.armed, True
        if not self.armed and not torch.compiler.is_compiling():
            self._count_idle()
        return again

    def decide(self, output: Any) -> Tensor:
        """Indices of the samples that go on, given the cut's output."""
        with torch.no_grad():
            features_ND = self.read(output)
            n, again = features_ND.size(0), bool(self.once)
            if self.once and n != self.once[0][1]:
                raise ValueError(f"decide_once() began with a batch of {self.once[0][1]} rows and now got {n}")
            if not torch.compiler.is_compiling():
                self.diagnostics.look_at_features(features_ND, self.views)
            if self.once:
                indices_K = self.once[0][0]
            else:
                indices_K = choose(features_ND, self.rule, self.density, self.views, self._pruned_parts).indices
                collect(features_ND, indices_K, self.rule, self.density, self.views)
            if self.once == []:
                self.once.append((indices_K, n))
        self._indices, self._batch_size = indices_K, n
        self.features = None if self.rule.reads == "nothing" else features_ND
        self.latest = (len(indices_K), n)
        self.decided = True
        if not torch.compiler.is_compiling():
            self._note_thread()
            self.blocked_forwards += 1
            self.replays.note(features_ND, indices_K)
            self.diagnostics.decided(kept=len(indices_K), of=n, is_repeat=again)
        return indices_K

    def let_pass(self, output: Any) -> None:
        """Remember a forward with gradients that was not armed, so that a replay of it is not
        mistaken for another.
        """
        with_grad = self._with_grad or torch.is_grad_enabled()
        if self.active and with_grad and not (torch.compiler.is_compiling() or _is_tracing()):
            features_ND = self._read_if_possible(output)
            if features_ND is not None:
                self.replays.note(features_ND, None)

    def leave(self) -> None:
        """The forward leaves the model: layers called on their own from here on are left alone."""
        self.armed = self._with_grad = False

    def replay(self, output: Any) -> Tensor | None:
        """The decision of the forward that activation checkpointing is running again; one without
        gradients is none of those.
        """
        if not self.active or not torch.is_grad_enabled():
            return None
        features_ND = self._read_if_possible(output)
        return None if features_ND is None else self.replays.decision(features_ND)

    @torch.no_grad()
    def read(self, output: Any) -> Tensor:
        """Float32 features ``[N, D]`` of the cut's output, without graph; for a rule that reads
        none ``[N, 1]``, enough to know a batch again.
        """
        if self.rule.reads == "nothing":
            x = output if isinstance(output, Tensor) else batched_tensor(output)
            return fingerprint(x.movedim(self.reader.batch_dim, 0))
        return self.reader(output)

    def _read_if_possible(self, output: Any) -> Tensor | None:
        """Of a forward in which nothing is pruned nothing is asked, so it may be of any shape."""
        try:
            return self.read(output)
        except Exception:  # a user's callable may raise anything
            return None

    def _count_idle(self) -> None:
        if self.decided or self._was_paused or not (torch.is_grad_enabled() and self.prunes) or in_backward():
            self._idle = 0
            return
        self._idle += 1
        if self._idle == IDLE_FORWARDS and self.latest is None:
            cause = "the model is in evaluation mode" if self.entered else "the model itself was not called"
            self.diagnostics.warn(
                "nothing",
                f"{IDLE_FORWARDS} forwards with gradients and a share above 0 passed the cut and none was pruned, "
                f"since {cause}. Call the model itself (not its `.forward` or its parts), in training mode.",
            )


def _compiled_anything() -> bool:
    return bool(torch._dynamo.utils.counters["frames"])


def _is_tracing() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call, attr-defined]
