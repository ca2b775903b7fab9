"""Files that are either whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from pfb.utils.errors import first_line

DRAFT = ".draft"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what shall stand at ``path``: it gets there, durably, once the block ends
    without an error.

    Raises:
        OSError: it cannot be written; what stood at ``path`` still does.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(place) as draft:
        ...     _ = draft.write_text("whole")
        >>> place.read_text()
        'whole'
    """
    draft = path.with_name(path.name + DRAFT)
    try:
        yield draft
        sync(draft)
        draft.replace(path)
        sync(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one go."""
    with replacing(path) as draft:
        draft.write_text(text)


def check_writable(path: Path) -> None:
    """Make the folder of a file that is to be written, before long work is done for it.

    Raises:
        OSError: the file cannot be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(None, "it is a folder")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(None, "Permission denied")


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def as_os_error(path: Path) -> Iterator[None]:
    """Around what writes to ``path`` through torch or safetensors, which report a full disk each by
    an error of its own.

    Raises:
        OSError: instead of it, with its first line.
    """
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise OSError(f"{path} could not be written: {first_line(error)}") from error
