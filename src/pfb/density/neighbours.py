"""A local density: the nearest of the features that training has seen lately.

Reading, collecting and writing are separate as in :class:`pfb.MovingCenters`. Shape suffixes: N
samples, M remembered ones, P pending ones, R those of all ranks, D feature dimensions.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from pfb.density import epochs
from pfb.density.frame import LOOK, frame_of
from pfb.density.kernels import COPY, Collects, checked_width
from pfb.density.memory_state import NAMES, tensors_of
from pfb.density.search import counted, in_deviations, near_ones, to_nearest, to_those_before, usual_distance
from pfb.utils import distributed as sync
from pfb.utils.moments import may_wait

MOST_PER_STEP = 2048  # rows of one rank
STEPS_APART = 2**20  # ranks that are so many steps apart look alike; beyond, float32 does not count by ones
GROUP = 4  # rows whose nearest is the usual neighbour
OWN_VIEWS = 3.0  # times the distance to its own view a sample must be from others to be alone at 0.6 of it; swept
NEARLY_ALL = 0.9
SETTLED, EVERY = 64, 4  # updates; later the units are measured, and epochs looked for, every fourth time


class NeighbourMemory:
    """The latest features of all samples that came by, stopped ones too, and the density ``f(x) = 1
    / (M V_D d(x) ** D)`` by the distance d to the nearest of them.

    Distances are in units of the remembered features' standard deviations. Unlike a bandwidth, d
    fits every place: it is small within a group of near-equal samples, however many others there
    are. It is large for the extreme ones, too, which is not what matters; :meth:`near_copies`
    therefore puts it in proportion to what is usual around there.

    **How large?** A group of c copies among S samples leaves ``c size / S`` rows in the memory. It
    is seen from about three on, so ``size`` should be at least ``3 S / c``. A memory that is longer
    than a third of an epoch would meet the samples of the epoch before, and every sample would look
    like a copy of itself; so it uses fewer rows then. It is told the length of an epoch, or finds
    out by how old the rows are that samples meet.

    A step costs matrix products of ``[N, D]`` and ``[D, M + N]``, of which, for long memories, a
    third is held at a time, and with several ranks one collective, so that copies are seen on
    whatever rank they lie. Shapes are constant, and nothing is read on the host except at steps 32,
    48, 64, 96, 128, ..., where a memory that is too long becomes shorter. Of one rank and step at
    most 2,048 rows are remembered.

    Args:
        size: M, number of features remembered, of all ranks together.

    Attributes:
        collects: ``"all"``: it is given the features of stopped samples, too.
        epoch: samples of an epoch, on all ranks together, if the caller knows it: at most a third
            as many rows are used. ``None``, the default: found out.

    Example:
        >>> import torch
        >>> memory = NeighbourMemory(size=100)
        >>> memory.accumulate(torch.tensor([[0.0, 0.0], [2.0, 2.0]])); memory.apply()
        >>> memory.distance(torch.tensor([[0.0, 0.0], [2.0, 1.0]]))
        tensor([0., 1.])
    """

    collects: ClassVar[Collects] = "all"

    def __init__(self, size: int = 4096) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 2:
            raise ValueError(f"`size` must be a whole number of at least 2 (got {size!r}); the default is 4096")
        self.size = size
        self.epoch: int | None = None
        self.updates = 0
        self._limit = size  # rows in use
        self._noted: Tensor | None = None  # [B], what probes met since the last look at it
        self._group = min(GROUP, max(1, size // 8))
        self._told = False
        self._rows: Tensor | None = None  # [M, D]
        self._counts: Tensor | None = None  # [2] int64: where the next row goes, how many there are
        self._frame: Tensor | None = None  # [2, D]: their middle, and 1 / standard deviation
        self._pending: Tensor | None = None  # [P, D + 1], the last column 1 where there is a row

    @property
    def ready(self) -> bool:
        """Whether anything is remembered. Until then all densities are equal."""
        return self._rows is not None

    @torch.no_grad()
    def distance(self, x: Tensor) -> Tensor:
        """Distance ``[N]`` of features ``[N, D]`` to the nearest that is remembered, float32. Reads
        only. All 1 while there is none.

        Raises:
            ValueError: another feature width than that of the remembered ones.
        """
        x_ND = self._checked(x)
        return x_ND.new_ones(x_ND.size(0)) if self._frame is None else self._look(x_ND)[2]

    @torch.no_grad()
    def near_copies(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """How many near-copies of each row of ``x`` are remembered, or come before it in ``x``, so
        that of copies within one batch the first counts as alone: ``[N]`` float32, 0 where nothing
        is near, common or extreme. Reads only. All 0 while none is remembered.

        A row counts by its distance as a part of the distance that is usual around there: 1 up to
        0.2 of it, 0 from 0.6 on, straight in between; the sum is multiplied by what the nearest
        counts for, so that many that are barely near do not add up to a copy. Of every four rows
        (of more in a memory of more than 4,096) the nearest counts. Usual for a memory of M is the
        distance to the nearest of four rows (that of nine in ten such groups, so that copies are
        seen even if they are two in five of all samples), or three tenths of the mean distance
        between two samples if that is more, times ``(4 / M) ** (1 / d)``. d is the dimension that
        the rows around the samples seem to have, from 8, as of images, to 64, as of text.

        With ``own``, usual is at most three times the distance from a sample to its own slightly
        changed view: a copy is what is nearer than the sample's own views, and a group that is
        merely more alike than the rest, whose views are more alike, too, is none.

        Args:
            x: ``[N, D]``.
            own: ``[N, D]``, features of a slightly changed view of each sample, as
                :meth:`pfb.Sketch.own_view` gives them; a row that is not finite sets no limit.

        Raises:
            ValueError: another feature width than that of the remembered ones, or ``own`` of
                another shape than ``x``.

        Example:
            >>> _ = torch.manual_seed(0)
            >>> memory, alike = NeighbourMemory(200), torch.zeros(1, 8)
            >>> memory.accumulate(torch.cat([torch.randn(180, 8), 0.1 * torch.randn(20, 8)]))
            >>> memory.apply()
            >>> memory.near_copies(alike) > 2, memory.near_copies(alike, own=alike + 0.01)
            (tensor([True]), tensor([0.]))
        """
        x_ND = self._checked(x)
        if own is not None and own.shape != x.shape:
            raise ValueError(f"`own` must have the shape of the features {tuple(x.shape)} (got {tuple(own.shape)})")
        if self._counts is None or self._frame is None:
            return x_ND.new_zeros(x_ND.size(0))
        z_ND, squares_NG, distance_N, usual_N = self._look(x_ND)
        if own is not None:
            moved_N = in_deviations(own.detach().float(), self._frame).sub_(z_ND).square_().sum(1).sqrt()
            usual_N = torch.where(moved_N.isfinite(), torch.minimum(usual_N, OWN_VIEWS * moved_N), usual_N)
        usual_N = usual_N.clamp_min(COPY)
        before_N, squares_NN = to_those_before(z_ND)
        squares_NC = torch.cat([counted(squares_NG), squares_NN], 1)
        found_N = near_ones(squares_NC, torch.minimum(distance_N, before_N), usual_N)
        return torch.where(self._counts[1] > 0, found_N, 0.0)

    @torch.no_grad()
    def log_density(self, x: Tensor) -> Tensor:
        """``log f(x_i)`` of features ``[N, D]``, float32 ``[N]``; all zero while nothing is
        remembered. Reads only.

        Raises:
            ValueError: another feature width than that of the remembered ones.
        """
        distance_N = self.distance(x)
        if self._counts is None or self._frame is None:
            return torch.zeros_like(distance_N)
        unit_D = self._frame[1]
        d = (unit_D > 0).sum()
        log_ball = 0.5 * d * math.log(math.pi) - torch.lgamma(0.5 * d + 1.0)
        log_ball = log_ball - torch.where(unit_D > 0, unit_D, 1.0).log().sum()  # f is of x, not of x in deviations
        return -(self._counts[1].clamp_min(1).log() + log_ball + d * distance_N.clamp_min(COPY).log())

    @torch.no_grad()
    def accumulate(self, x: Tensor) -> None:
        """Collect features ``[N, D]`` for the next :meth:`apply`; before that no sample is a
        neighbour, not even its own. Rows that are not finite are left out.
        """
        x_ND = self._checked(x)
        if self._rows is None and self._pending is not None and self._pending.size(1) != x_ND.size(1) + 1:
            self._pending = None  # of a forward that failed on a batch of another width
        finite_N1 = (x_ND.isfinite() & x_ND.square().isfinite()).all(1, keepdim=True)
        rows = torch.cat([torch.where(finite_N1, x_ND, 0.0), finite_N1.float()], 1)
        if self._pending is None:
            self._pending = rows.new_zeros(most_per_step(self.size, sync.world_size()), rows.size(1))
        self._pending.copy_(torch.cat([self._pending, rows])[-len(self._pending) :])

    @torch.no_grad()
    def apply(self) -> None:
        """Remember what was collected on all ranks since the last call, in place of the oldest: the
        only method that writes.

        With several ranks this is one collective, which every rank must enter.

        Raises:
            RuntimeError: a rank among several has seen no forward pass the cut; or they are at
                different steps (noticed where the features lie on the CPU; on a GPU, asking would
                cost a synchronisation in every step).
        """
        if self._pending is None:
            if sync.world_size() == 1:
                return
            raise RuntimeError(
                "this rank reached step() before any forward passed the cut, so it cannot tell the others its rows. "
                "Give every rank at least one training batch per step, if only an empty one."
            )
        self.updates += 1
        self._shorten()
        self._tell_if_too_long()
        new_RD = self._rows_of_all_ranks()
        if self._rows is None or self._counts is None or self._frame is None:
            self._rows = new_RD.new_zeros(self.size, new_RD.size(1) - 1)
            self._frame = new_RD.new_zeros(2, new_RD.size(1) - 1)
            self._counts = torch.zeros(2, dtype=torch.int64, device=new_RD.device)
            self._noted = new_RD.new_zeros(epochs.COUNTED + 2)
        given_R = new_RD[:, -1] > 0
        # More ranks than places: of the rows, the first that find one.
        first_R = given_R.argsort(descending=True, stable=True)[: self._limit]
        new_RD = new_RD.index_select(0, first_R)[:, :-1]
        head, filled = self._counts.unbind()
        turn_R, n = torch.arange(len(new_RD), device=new_RD.device), given_R.sum()
        place_R = (head + turn_R) % self._limit  # each one once, so that only these rows are touched
        written_RD = torch.where((turn_R < n)[:, None], new_RD, self._rows.index_select(0, place_R))
        self._rows.index_copy_(0, place_R, written_RD)
        self._counts.copy_(torch.stack([(head + n) % self._limit, (filled + n).clamp_max(self._limit)]))
        self._pending.zero_()
        if self.updates <= SETTLED or self.updates % EVERY == 0:
            self._frame.copy_(frame_of(self._rows, self._counts[1]))

    def summary(self) -> dict[str, float]:
        """Numbers to log; synchronises the device."""
        return {"remembered": 0.0 if self._counts is None else float(self._counts[1])}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only (safe for ``torch.load(weights_only=True)``); tensors are
        references.
        """
        numbers = {"size": self.size, "updates": self.updates, "limit": self._limit}
        return {**numbers, **{name: getattr(self, f"_{name}") for name in NAMES}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; its tensors are copied, and moved to the features' device at the next
        use.

        Raises:
            ValueError: not a state of a memory, of another size, or of parts that do not belong
                together. Nothing is changed then.
        """
        tensors = tensors_of(state, self.size)
        for name, x in tensors.items():
            setattr(self, f"_{name}", None if x is None else x.detach().clone())
        self.updates, self._limit = state["updates"], state["limit"]
        if self._pending is not None:  # of a run on another number of ranks
            none = self._pending.new_zeros(most_per_step(self.size, sync.world_size()), self._pending.size(1))
            self._pending = torch.cat([none, self._pending])[-len(none) :]

    # Inside

    def _look(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features in deviations ``[N, D]``, the square of their distance to the nearest row of
        each group ``[N, G]``, the distance to the nearest of all ``[N]``, and what is usual around
        there ``[N]``.
        """
        assert self._rows is not None and self._counts is not None and self._frame is not None
        filled, z_ND = self._counts[1], in_deviations(x_ND, self._frame)
        least_NG, usual_N = self._usual(z_ND)
        distance_N = to_nearest(z_ND, self._rows, self._frame, filled, least_NG, self._group)
        none = filled == 0
        squares_NG = least_NG + z_ND.square().sum(1, keepdim=True)
        return z_ND, squares_NG, torch.where(none, 1.0, distance_N), torch.where(none, 1.0, usual_N)

    def _usual(self, z_ND: Tensor) -> tuple[Tensor, Tensor]:
        assert self._rows is not None and self._counts is not None and self._frame is not None
        return usual_distance(z_ND, self._rows[: self._limit], self._frame, self._counts[1], self._group)

    def _rows_of_all_ranks(self) -> Tensor:
        assert self._pending is not None
        if sync.world_size() == 1:
            return self._pending
        step = torch.full_like(self._pending[:1], self.updates % STEPS_APART)
        rows = sync.concatenated(torch.cat([step, self._pending])).view(sync.world_size(), -1, step.size(1))
        if rows.device.type == "cpu" and (steps := rows[:, 0, 0].tolist()) != steps[:1] * len(steps):
            raise RuntimeError(
                f"the ranks called step() unevenly: they are at steps {steps}. Give every rank equally many steps, and "
                "resume all from one state."
            )
        return rows[:, 1:].flatten(0, 1)

    def _shorten(self) -> None:
        """Use fewer rows, the latest, if they are more than a third of an epoch. The host waits at
        steps 32, 48, 64, 96, 128, ... alone.
        """
        if self._rows is None or self._counts is None or self._noted is None or self._pending is None:
            return
        limit = self._limit if self.epoch is None else min(self._limit, max(2, self.epoch // epochs.PART))
        if self.epoch is None:
            if self.updates <= SETTLED or self.updates % EVERY == 0:
                self._note()
            if epochs.is_looked_at(self.updates):
                sync.sum_over_ranks(self._noted)  # or they would remember differently long
                found = epochs.shorter(self._noted.tolist(), int(self._counts[1]))
                limit = limit if found is None else min(limit, found)
                self._noted.zero_()
        if limit < self._limit:
            head, filled = self._counts.unbind()
            turn_M = torch.arange(limit, device=head.device)
            left = filled.clamp_max(limit)
            self._rows[:limit] = self._rows.index_select(0, (head - left + turn_M) % self._limit)
            self._counts.copy_(torch.stack([left % limit, left]))
            self._limit = limit

    def _note(self) -> None:
        """What a few rows of this rank that were collected meet."""
        assert self._counts is not None and self._frame is not None
        assert self._noted is not None and self._pending is not None
        probes = self._pending[-epochs.PROBES :]
        z_ND = in_deviations(probes[:, :-1], self._frame)
        least_NG, usual_N = self._usual(z_ND)
        least_NG = least_NG + z_ND.square().sum(1, keepdim=True)
        self._noted += epochs.noted(least_NG, usual_N, probes[:, -1] > 0, self._counts[0], self._counts[1], self._group)

    def _tell_if_too_long(self) -> None:
        """At steps 64, 128, 256, ..., the only ones at which the host waits."""
        if self._told or self._pending is None or not may_wait(self.updates):
            return
        latest_PD = self._pending[-LOOK:]  # of a long memory, all distances of all rows would fill a device
        given_P = latest_PD[:, -1] > 0
        near_P = (self.distance(latest_PD[:, :-1]) < COPY) & given_P
        near, given = torch.stack([near_P.sum(), given_P.sum()]).tolist()
        if given >= 2 and near >= NEARLY_ALL * given:
            self._told = True
            warnings.warn(
                f"pfb: {near} of {given} samples of this step equal one of the latest {self.size} features. If the "
                "data do not repeat themselves that much, every sample meets itself again (let `size` be a third of an "
                "epoch at most), or what they are judged by does not tell them apart (a prompt, a mask: pass `by=`).",
                stacklevel=4,
            )

    def _checked(self, x: Tensor) -> Tensor:
        x_ND = checked_width(x, None if self._rows is None else self._rows.size(1))
        held = self._rows if self._rows is not None else self._pending
        if held is not None and held.device != x.device:
            for name in NAMES:
                tensor = getattr(self, f"_{name}")
                setattr(self, f"_{name}", None if tensor is None else tensor.to(x.device))
        return x_ND


def most_per_step(size: int, ranks: int) -> int:
    """How many rows of one rank and step a memory of so many rows remembers, the latest ones."""
    return max(1, min(MOST_PER_STEP, size // ranks))
