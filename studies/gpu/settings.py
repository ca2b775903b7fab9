"""Settings of the study, for either command line."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints


@dataclass(frozen=True)
class GpuConfig:
    """A day of measuring in nine minutes on one GPU: whole training steps, judging alone, trainings
    on CIFAR-10. Each item is one line of lines.jsonl in --out, written as it ends, so that a run
    that is cut off loses nothing; started again, it does what is missing.
    """

    minutes: float = 9.0
    """The run ends after so many."""
    data: Path = Path("gpu-data")
    """Folder of the images as --pack wrote them."""
    out: Path = Path("results/gpu")
    """All results (lines.jsonl), their tables (table.md), and what went wrong (errors.log)."""
    pack: Path | None = None
    """Write the images of this folder, {train,test}/CLASS/*.jpg of CIFAR-10, into --data."""
    render: bool = False
    """Write the tables from the results that are there."""
    only: str = ""
    """Items whose name begins so, several with commas: steps/resnet50,train/clips."""
    workers: int = 4
    """Trainings at once; 0: everything one by one in this process."""
    device: str = "cuda"
    commit: str = ""
    """Of the code, where there is no git to ask."""
    epochs: int = 0
    """Of trainings on all images; 0: as planned."""
    compile: bool = False
    """Compile the networks that are trained, too; their short trainings seldom earn it."""
    backend: str = "inductor"
    """Of torch.compile, for the compiled steps."""
    tiny: bool = False
    """A rehearsal: small models and few images, on a CPU, too."""


def parsed(args: list[str]) -> GpuConfig:
    """By the standard library alone, for machines with PyTorch and little else."""
    parser = argparse.ArgumentParser("python -m studies.gpu", description=GpuConfig.__doc__)
    hints = get_type_hints(GpuConfig)
    for setting in dataclasses.fields(GpuConfig):
        name = "--" + setting.name
        if hints[setting.name] is bool:
            parser.add_argument(name, action="store_true")
        else:
            kind = {int: int, float: float, str: str}.get(hints[setting.name], Path)
            parser.add_argument(name, type=kind, default=setting.default)
    return GpuConfig(**vars(parser.parse_args(args)))
