"""A process that measures one item after another, as they come in on its standard input."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from studies.gpu import steps, trainings

MEASURES: dict[str, Any] = {"waits": steps.waits, "judging": steps.judging_times, "steps": steps.step_times}


def measure(item: dict[str, Any], data: Path, device: torch.device) -> dict[str, Any]:
    """Measure an item; a failure is a result, too.

    Args:
        item: its ``kind`` and ``settings``.
        data: folder of the packed images.
        device: where.
    """
    begun = time.monotonic()
    try:
        with steps.emptied(device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # batches of noise come again and again
            kind, settings = item["kind"], item["settings"]
            is_training = kind == "train"
            result = trainings.train(settings, data, device) if is_training else MEASURES[kind](settings, device)
        told: dict[str, Any] = {"status": "done", "result": result}
    except Exception as error:  # out of memory, a compiler's refusal: the other items go on
        traceback.print_exc()
        told = {"status": "failed", "error": f"{type(error).__name__}: {error}"[:600]}
    return {**told, "seconds": round(time.monotonic() - begun, 2), "origin": origin(device)}


def origin(device: torch.device) -> dict[str, Any]:
    """What the numbers are of."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    cudnn = torch.backends.cudnn.version() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn}


def prepare() -> None:
    """What all measuring processes have in common."""
    # A model with a blocker and one without, of one class, are compiled in one process.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def main() -> None:
    """Until the input ends."""
    data, device = Path(sys.argv[1]), torch.device(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    prepare()
    for line in sys.stdin:
        told = measure(json.loads(line), data, device)
        answers.write(json.dumps(told) + "\n")
        answers.flush()
        if "CUDA error" in told.get("error", ""):
            break  # nothing works in this process any more


if __name__ == "__main__":
    main()
