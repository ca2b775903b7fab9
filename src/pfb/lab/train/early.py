"""What can be refused before data and libraries are loaded, which takes many seconds. This file
needs no torch.
"""

from __future__ import annotations

import fcntl
import importlib.util
import shlex
from pathlib import Path

from pfb.lab import files
from pfb.lab.errors import RunError

CONFIG = "config.json"
LOCK = ".lock"


def check_free(place: Path, overwrite: bool) -> None:
    """Refuse a folder that a new run must not take.

    Raises:
        RunError: it holds files of something else, or a run that is not to be overwritten.
    """
    foreign = f"--out {place} holds files of something else; choose another folder"
    if place.exists() and not place.is_dir():
        raise RunError(foreign)
    if not place.exists() or {p.name for p in place.iterdir()} <= {LOCK, CONFIG + files.DRAFT}:
        return
    if not _is_settings(place / CONFIG):
        raise RunError(foreign)
    if not overwrite:
        raise RunError(
            f"--out {place} is not empty, it holds a run already: continue it with "
            f"--resume {shlex.quote(str(place))}, or pass --overwrite"
        )


def check_idle(place: Path) -> None:
    """Refuse the folder of a run that another process trains.

    Raises:
        RunError: one does.
    """
    if not (place / LOCK).is_file():
        return
    with files.reading(place / LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(taken(place)) from None


def taken(place: Path) -> str:
    """That a folder is in use, and what to do."""
    return (
        f"another process trains in {place} at this moment; wait for its end, or choose another --out "
        "(of a killed launcher the processes may live on: end them)"
    )


def check_tracker(track: str) -> None:
    """Refuse a tracker that is not installed; Accelerate would leave it out without a word.

    Raises:
        RunError: it is not.
    """
    if track != "none" and importlib.util.find_spec(track) is None:
        raise RunError(f"--track {track} needs a package that is not installed: pip install {track}")


def check_output(flag: str, place: Path, endings: tuple[str, ...], overwrite: bool = True) -> None:
    """Refuse a file that cannot be written, before minutes are spent on what shall stand there.

    Args:
        flag: its name.
        place: the file.
        endings: it must have one of them.
        overwrite: whether it may be there already.

    Raises:
        RunError: it cannot, or it is there.
    """
    if place.suffix not in endings:
        raise RunError(f"--{flag} must end in {' or '.join(endings)} (got {place})")
    try:
        files.check_writable(place)
    except OSError as error:
        raise RunError(f"--{flag} {place} cannot be written ({error.strerror or error})") from error
    if place.exists() and not overwrite:
        raise RunError(f"{place} is there already: name another by --{flag}, or pass --overwrite")


def folders_of_runs(place: Path) -> list[Path]:
    """The folder of a run, or those in it that are.

    Raises:
        RunError: there is none.
    """
    if (place / CONFIG).exists():
        return [place]
    if not (inside := sorted(file.parent for file in place.glob(f"*/{CONFIG}"))):
        raise RunError(f"{place}: there is no run (no {CONFIG}), nor a folder that holds one")
    return inside


def _is_settings(place: Path) -> bool:
    """Whether a file is the config.json of some version of pfb train."""
    try:
        settings = files.read_json(place)
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and {"data", "data_root"} <= settings.keys()
