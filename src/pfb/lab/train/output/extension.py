"""More epochs for a run that is finished: a cycle of its own, in the same folder.

Learning rate and window of pruning have come to their end and begin anew over the added epochs.
Weights, the optimizer's averages, the density, the records and the sums go on.
"""

from __future__ import annotations

import dataclasses
import os
import shlex

from pfb.lab.errors import RunError
from pfb.lab.train.options.config import TrainConfig
from pfb.lab.train.output.folder import RunFolder


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
