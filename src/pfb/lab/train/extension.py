"""More epochs for a run that is finished: a cycle of its own, in the same folder.

The learning rate and the window of pruning were laid out for the epochs that were asked for, and
both have come to their end. To stretch them afterwards would change what is past; so they begin
anew, over the added epochs alone. Weights, the optimizer's averages, the density, the records and
the sums go on.
"""

from __future__ import annotations

import dataclasses
import os
import shlex

import pfb
from pfb.lab.errors import RunError
from pfb.lab.train.config import TrainConfig
from pfb.lab.train.folder import RunFolder


def extended(config: TrainConfig, epochs: int) -> TrainConfig:
    """The settings of a finished run for ``epochs`` in all, noted in its folder, where it is
    unfinished from now on.

    Raises:
        RunError: these are fewer; the run is not finished; or another process trains in its folder.
    """
    folder, run = RunFolder(config.out), shlex.quote(str(config.out))
    if epochs < config.epochs:
        raise RunError(f"--epochs {epochs}: the run in {config.out} is one of {config.epochs} epochs; name more")
    longer = dataclasses.replace(config, epochs=epochs, extended_from=config.epochs)
    if os.environ.get("RANK", "0") != "0":
        return longer
    with folder.locked():
        if folder.summary_of(config) is None:
            raise RunError(
                f"--epochs adds to a finished run; the one in {config.out} is on its way to {config.epochs}, and its "
                f"learning rate with it: finish it first with pfb train --resume {run}"
            )
        folder.reopen(longer)
    return longer


def begins(config: TrainConfig, epoch: int) -> bool:
    """Whether a cycle of added epochs begins after so many."""
    return epoch == config.extended_from > 0


def said(config: TrainConfig) -> str:
    """What becomes of the schedule, on one line."""
    return (
        f"{config.extended_from} epochs are done. Epochs {config.extended_from + 1} to {config.epochs} are a cycle of "
        f"their own: the learning rate ({config.lr_schedule}, peak {config.lr}) and the window of pruning begin anew"
    )


def restart(blocker: pfb.Blocker) -> None:
    """Let the window of pruning begin anew; what is known of densities stays."""
    blocker.load_state_dict({**blocker.state_dict(), "step": 0})
