"""Where numbers come from: written beside every result."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pfb


def versions() -> dict[str, str]:
    """Versions of what decides a result, and the commit the code was at (``-dirty`` if files were
    changed).
    """
    packages = {name: metadata.version(name) for name in ("torch", "torchvision", "accelerate")}
    return {"pfb": pfb.__version__, "commit": _commit(), "python": platform.python_version(), **packages}


def processor() -> str:
    """The CPU's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """Empty outside a checkout."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return asked.stdout.strip()
