"""What torch.compile says when it fails, on one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pfb.lab.errors import RunError
from pfb.lab.train.options.config import TrainConfig
from pfb.utils.errors import first_line


@contextlib.contextmanager
def in_one_line(config: TrainConfig) -> Iterator[None]:
    """Around all that runs a model.

    Raises:
        RunError: the compiler of ``--compile`` failed, or there is none.
    """
    if not config.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        said = first_line(getattr(error, "inner_exception", error))
        raise RunError(f"--compile: torch.compile failed ({said}); leave it out") from error
