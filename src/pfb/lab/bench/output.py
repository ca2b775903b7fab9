"""How a benchmark leaves its numbers: a JSON file with all of them and where they come from, a
table, and a figure.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from pfb.lab import files
from pfb.lab.origin import processor, versions


def device_of(name: str | None = None) -> torch.device:
    """The device a benchmark runs on: the one named, else the accelerator if there is one, else the
    CPU.
    """
    if name is None and torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
        assert accelerator is not None
        return accelerator
    return torch.device(name or "cpu")


def origin(config: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What decides a result: settings (without the folder), versions, commit, device, threads."""
    cuda = device.type == "cuda"
    return {
        "config": {name: value for name, value in config.items() if name != "out"},
        "versions": versions()
        | ({"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if cuda else {}),  # type: ignore[no-untyped-call]
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
    }


def write(out: Path, numbers: dict[str, Any], table: str, figure: Figure | None = None) -> Path:
    """Write ``out`` (.json) and beside it the table (.md) and the figure (.png), and print the
    table; returns its path.
    """
    from rich.console import Console

    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(out, json.dumps(numbers, indent=1))
    place = out.with_suffix(".md")
    files.write_text(place, table)
    if figure is not None:
        figure.savefig(out.with_suffix(".png"), dpi=120)
    Console().print(table, highlight=False, markup=False, soft_wrap=True)
    return place
