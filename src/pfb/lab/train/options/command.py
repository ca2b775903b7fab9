"""The arguments of ``pfb train`` that stand for others: a file's settings, or a run's own."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfb.lab.errors import RunError
from pfb.lab.train import early
from pfb.lab.train.options.config import settings_in
from pfb.lab.train.options.presets import PRESETS


def whole(args: list[str]) -> list[str]:
    """Arguments with the settings of ``--preset`` and then of ``--config`` in front: the later ones
    win.

    Raises:
        RunError: the file cannot be read or names no settings; or ``--resume`` comes with settings.
    """
    parser = argparse.ArgumentParser(prog="pfb train", add_help=False, allow_abbrev=False)
    for name, kind in (("preset", str), ("config", Path), ("resume", Path)):
        parser.add_argument(f"--{name}", type=kind)
    named = parser.parse_known_args(args)[0]
    if named.resume is not None:
        _check_resume(given(args))
        if os.environ.get("RANK", "0") == "0":  # the others' launcher ends them, too
            early.check_idle(named.resume)
        from pfb.lab.train.output.folder import RunFolder

        return [f"--epochs={RunFolder(named.resume).config().epochs}", *args]
    recipe = PRESETS.get(named.preset, {})  # an unknown name is refused by tyro
    return [*as_flags(recipe), *(as_flags(settings_in(named.config)) if named.config else []), *args]


def _check_resume(names: list[str]) -> None:
    if "dry-run" in names:
        raise RunError("--dry-run checks a run that has not begun; leave out --resume")
    if others := [name for name in names if name not in BESIDE_RESUME]:
        raise RunError(
            f"--resume continues a run with its own settings, but for --epochs, --minutes, --control and --seeds; "
            f"leave out --{', --'.join(others)}"
        )


BESIDE_RESUME = ("resume", "epochs", "minutes", "control", "seeds", "help")


def given(args: list[str]) -> list[str]:
    """Names of the flags among some arguments.

    Example:
        >>> given(["--lr=0.1", "--no-augment", "--batch_size", "64"])
        ['lr', 'augment', 'batch-size']
    """
    flags = (arg.partition("=")[0].removeprefix("--") for arg in args if arg.startswith("--"))
    return [flag.replace("_", "-").removeprefix("no-") for flag in flags]


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the arguments that set them.

    Example:
        >>> as_flags({"batch_size": 64, "augment": False, "lr": -1.5})
        ['--batch-size=64', '--no-augment', '--lr=-1.5']
    """
    flags = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags.append(f"--{flag}={value}")
    return flags
