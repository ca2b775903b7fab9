"""Ranks that prune together must agree on their settings, and on who holds which batch.

Checked in the first call, where all ranks of the group talk once more than in later ones, and in
calls 64, 128, 256, ..., where ranks outside the group are compared through the store that they
share: nobody waits for anybody there.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from pfb.utils import distributed as sync
from pfb.utils.moments import may_wait

if TYPE_CHECKING:
    from pfb.pruning.batch_pruner import BatchPruner

_pruners = itertools.count()  # of this process, in the order of their first calls


class Agreement:
    """What the ranks of one pruner are asked."""

    def __init__(self) -> None:
        self._number: int | None = None

    def check(self, pruner: BatchPruner, features_ND: Tensor, indices_K: Tensor) -> None:
        """Compare with other ranks, if there are any.

        Raises:
            RuntimeError: settings differ; the ranks of a group hold the same batch; or ranks that
                hold the same batch chose differently.
        """
        if not sync.is_running() or dist.get_world_size() == 1:
            return
        call = pruner.steps + 1
        if first := self._number is None:
            self._number = next(_pruners)
        if not (first or may_wait(call)):
            return
        batch = _digest(features_ND)
        if first:
            self._check_settings(sync.everybodys((_settings(pruner), batch)))
        if pruner.group is not None:
            self._check_peers(call, batch, _digest(indices_K))

    def _check_settings(self, everybodys: list[tuple[dict[str, str], str]]) -> None:
        settings, batches = zip(*everybodys, strict=True)
        sync.check_settings(list(settings), "make the BatchPruner with the same, and load the same state, on all ranks")
        for rank, batch in enumerate(batches):
            if batch and (other := batches.index(batch)) < rank:
                raise RuntimeError(
                    f"ranks {other} and {rank} hold the same batch. If that is meant (tensor or sequence parallel), "
                    "pass `group=`, the process group of the ranks whose batches differ; otherwise give each rank its "
                    "own part of the data (DistributedSampler, accelerator.prepare)."
                )

    def _check_peers(self, call: int, batch: str, choice: str) -> None:
        """Ranks with the same place in their groups hold the same batch, and must choose alike."""
        store: Any = dist.distributed_c10d._get_default_store()
        key = f"pfb/{self._number}/{call}/{sync.rank()}"
        mine = f"{batch}/{choice}"
        theirs = store.compare_set(key, "", mine).decode()
        if theirs not in ("", mine):
            what = "chose other samples of it" if theirs.startswith(batch) else "hold another batch"
            raise RuntimeError(
                f"ranks with place {sync.rank()} in their `group` must hold the same batch and choose the same "
                f"samples, but two of them {what} in call {call}. Make the BatchPruner with the same settings and "
                "`seed` on all ranks, load the same state, and give all ranks of one model the same batches."
            )


def _settings(pruner: BatchPruner) -> dict[str, str]:
    """What must be equal on all ranks, by the argument's name."""
    others = {"features": pruner.features.name, "views": repr(pruner.views), "seed": repr(pruner.seed)}
    return pruner._settings(pruner.density, rule=_said(pruner.rule), **others)


def _said(rule: Any) -> str:
    """A rule's settings, or its name; never its address."""
    said = repr(rule)
    return getattr(rule, "__qualname__", type(rule).__name__) if " at 0x" in said else said


def _digest(x: Tensor) -> str:
    """A fingerprint of the values, empty for none; waits for the device."""
    if x.numel() == 0:
        return ""
    data = ctypes.string_at((held := x.detach().to("cpu").contiguous()).data_ptr(), held.nbytes)
    return hashlib.blake2b(data + repr(tuple(x.shape)).encode(), digest_size=12).hexdigest()
