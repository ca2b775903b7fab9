"""How the pruned share changes over training."""

from __future__ import annotations

import contextlib
import math
import numbers
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

MOST_LEVELS = 1000  # of a ramp; more change no batch, of which each level is another size
ROUNDING = 1e-9  # a step that stands on a level's first moment belongs to it, whatever its quotient rounds to


@dataclass(frozen=True)
class Schedule:
    """Pruned share as a step function of training progress; see :func:`window`.

    Attributes:
        prune: the share pruned in the main part, in [0, 1).
        start: progress in [0, 1] from which samples are pruned.
        stop: progress in [0, 1] from which training runs on full data again.
        ramp: shares walked through, in equal parts, over the first half of the window.
    """

    prune: float
    start: float = 0.0
    stop: float = math.inf
    ramp: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        ends = self.stop == math.inf or (_is_number(self.stop) and self.stop <= 1.0)
        if not (ends and _is_number(self.start) and 0.0 <= self.start < self.stop):
            raise ValueError(
                f"`start` and `stop` must be shares of training with 0 <= start < stop <= 1 (got start={self.start!r}, "
                f"stop={self.stop!r}). Divide steps or epochs by their total."
            )
        object.__setattr__(self, "prune", _checked_share("prune", self.prune))
        object.__setattr__(self, "ramp", tuple(_checked_share("ramp", level) for level in self.ramp))

    @property
    def needs_total_steps(self) -> bool:
        return self.start > 0 or self.stop < math.inf or bool(self.ramp)

    def share(self, step: int, total_steps: int | None) -> float:
        """The pruned share at ``step`` (0 is the first) of ``total_steps``."""
        if not self.needs_total_steps:
            return self.prune
        if total_steps is None:
            raise ValueError("a schedule with start, stop or ramp needs `total_steps`")
        progress = step / total_steps + ROUNDING
        if not self.start <= progress < self.stop:
            return 0.0
        inside = (progress - self.start) / (min(self.stop, 1.0) - self.start)
        if inside < 0.5 and self.ramp:
            return self.ramp[int(inside * 2 * len(self.ramp))]
        return self.prune


class Progress:
    """Where a training stands, and the share that is pruned there: what both tools have.

    Args:
        prune: a share in [0, 1), or a :class:`Schedule`.
        total_steps: of the whole training; needed by a schedule that has a window.

    Attributes:
        schedule: the share over training.
        steps: how many are done.

    Raises:
        ValueError: an argument breaks its rule; the message names it and the value got.
    """

    def __init__(self, prune: float | Schedule, total_steps: int | None = None) -> None:
        self.schedule = prune if isinstance(prune, Schedule) else Schedule(prune)
        self.steps = 0
        self._is_paused = False
        self.total_steps = total_steps

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole training, which a window spans; may be set until training begins."""
        return self._total_steps

    @total_steps.setter
    def total_steps(self, value: int | None) -> None:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= 1
        if not (value is None or whole):
            raise ValueError(f"`total_steps` must be a whole number of at least 1 (got {value!r})")
        self._total_steps = None if value is None else int(value)
        self._share_may_change()

    @property
    def _is_known(self) -> bool:
        """Whether the share can be told yet."""
        return self.total_steps is not None or not self.schedule.needs_total_steps

    @property
    def prune(self) -> float:
        """The share that the next step prunes, by the schedule; 0 while it cannot be told."""
        return Progress.share_after(self, 0)

    @prune.setter
    def prune(self, value: float) -> None:
        raise AttributeError(
            f"`prune` follows the schedule and cannot be set (got {value!r}): make it with prune=pfb.window(...), or "
            "let all pass inside its paused()"
        )

    def share_after(self, steps: int) -> float:
        """The share so many steps after the next one."""
        if not self._is_known:
            return 0.0
        at = self.steps + steps
        at = at if self.total_steps is None else min(at, self.total_steps)  # beyond the end as at the end
        return self.schedule.share(at, self.total_steps)

    def _settings(self, density: object, **others: str) -> dict[str, str]:
        """What must be equal on all ranks, by the argument's name."""
        size = getattr(density, "size", getattr(density, "n_centers", ""))
        plan = {"prune": repr(self.schedule), "total_steps": repr(self.total_steps)}
        return {**plan, **others, "density": f"{type(density).__name__}({size})", "step": repr(self.steps)}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, all samples pass (a teacher's forward), and nothing is judged or remembered."""
        before, self._is_paused = self._is_paused, True
        self._share_may_change()
        try:
            yield
        finally:
            self._is_paused = before
            self._share_may_change()

    def _share_may_change(self) -> None:
        """Called whenever another share may hold from now on."""

    def _advance(self) -> None:
        """One more is done; warns once where that is more than there were to be."""
        self.steps += 1
        self._share_may_change()
        if self.schedule.needs_total_steps and self.steps == (self.total_steps or 0) + 1:
            warnings.warn(
                f"pfb: there were more steps than total_steps={self.total_steps}, so the schedule is over. It counts "
                "steps, not epochs: len(loader) * epochs.",
                stacklevel=3,
            )


def window(prune: float, start: float = 0.0, stop: float = 1.0, ramp: int | tuple[float, ...] = ()) -> Schedule:
    """Prune only inside a window of training, so that it can begin and end on full data.

    Args:
        prune: share of every batch that is stopped, in [0, 1).
        start: where the window begins, as a share of training in [0, 1].
        stop: where it ends; from there on every sample trains (0.875 leaves the last eighth on full
            data).
        ramp: few shares, walked through in equal parts over the first half of the window before
            ``prune`` holds; or their number, evenly from ``0.2 * prune`` upwards (the authors'
            release ramps continuously from 0.2). Each level is one batch size of the deep part, so
            one compiled graph.

    Raises:
        ValueError: a share outside [0, 1), or a window that is empty or leaves [0, 1].

    Example:
        >>> schedule = window(0.4, start=0.1, stop=0.9, ramp=(0.1, 0.2))
        >>> [schedule.share(step, 10) for step in range(10)]
        [0.0, 0.1, 0.1, 0.2, 0.2, 0.4, 0.4, 0.4, 0.4, 0.0]
    """
    prune = _checked_share("prune", prune)
    if isinstance(ramp, int):
        if isinstance(ramp, bool) or not 0 <= ramp <= MOST_LEVELS:
            raise ValueError(
                f"`ramp` must be a number of levels from 0 to {MOST_LEVELS:,} or a tuple of shares (got {ramp!r})"
            )
        ramp = tuple(round(prune * (0.2 + 0.8 * level / ramp), 4) for level in range(ramp))
    return Schedule(prune, start, stop, ramp)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _checked_share(name: str, value: float) -> float:
    if not _is_number(value) or not 0.0 <= value < 1.0:
        raise ValueError(
            f"`{name}` must be the share of samples to stop, a number in [0, 1) (got {value!r}). 0.4 stops 40 % of "
            "every batch; 0 switches pruning off; pfb.window(...) is for a share that changes."
        )
    return float(value)
