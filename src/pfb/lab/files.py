"""Files that are either whole or absent: written beside their place, then renamed into it. And what
a stranger may have put into a folder: links are not written through, and only files are read.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from pfb.utils.errors import first_line

DRAFT = ".draft"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write what shall stand at ``path``: it gets there, durably, once the block ends
    without an error. It is always a new one; a link at ``path`` or its draft is replaced, and what
    it points to is left alone.

    Raises:
        OSError: it cannot be written; what stood at ``path`` still does.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(place) as file:
        ...     _ = file.write(b"whole")
        >>> place.read_text()
        'whole'
    """
    draft = path.with_name(path.name + DRAFT)
    draft.unlink(missing_ok=True)  # what a killed process or a stranger left
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(draft, flags, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync(path.parent)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not name it
        raise


def write_text(path: Path, text: str, errors: str = "backslashreplace") -> None:
    """Replace a text file in one go, in UTF-8; what is none in it, such as an old name, is written
    as its code, or, with ``errors="surrogateescape"``, as the bytes that it has.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", errors))


def write_table(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Replace a CSV file in one go; names that are not UTF-8 keep their bytes."""
    with replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        csv.writer(text).writerows(rows)
        text.detach()


def appending(path: Path) -> io.TextIOWrapper:
    """A text file to add lines to, made if it is not there.

    Raises:
        OSError: it is a link or no regular file, or cannot be written.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return io.TextIOWrapper(io.BufferedWriter(_regular(path, flags, "a")), encoding="utf-8")


def reading(path: Path) -> io.BufferedReader:
    """A file to read, or what a link at ``path`` points to.

    Raises:
        OSError: it cannot be read, or is a pipe or device, which might never end.
    """
    return io.BufferedReader(_regular(path, os.O_RDONLY, "r"))


def read_text(path: Path) -> str:
    """A text file's content, of UTF-8; raises as :func:`reading`, and ``ValueError`` for other
    bytes.
    """
    with reading(path) as file:
        return file.read().decode()


def read_json(path: Path) -> Any:
    """The value that a JSON file holds.

    Raises:
        OSError: as :func:`reading`.
        ValueError: it holds something else.
    """
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """The value of a JSON text; ``ValueError`` where it is none or nested without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote, if that is tensors and plain values; anything else is not loaded,
    so that no code of a stranger runs.

    Raises:
        OSError: as :func:`reading`.
        ValueError: it is something else, or damaged.
    """
    import torch

    with reading(path) as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # its text tells how to run the code
            raise ValueError("it is no file of tensors and plain values, and nothing else is loaded") from None
        except Exception as error:  # torch.load has no error of its own
            raise ValueError(first_line(error)) from error


def remove(path: Path) -> None:
    """Remove a folder with all in it, or a link to one, if it is there.

    Raises:
        OSError: some of it cannot be removed.
    """
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def linked(path: Path) -> OSError:
    """The error of a link where a file or folder is to be written."""
    return OSError(errno.ELOOP, "it is a link, which is not written through; remove it", str(path))


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
    with reading(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def as_os_error(path: Path) -> Iterator[None]:
    """Around what writes to ``path`` through torch or safetensors, which report a full disk each by
    an error of its own.

    Raises:
        OSError: instead of it, with what the system said.
    """
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        said = first_line(error) if cause is None else cause.strerror or first_line(cause)
        raise OSError(f"{path} could not be written: {said}") from error


def _regular(path: Path, flags: int, mode: str) -> io.FileIO:
    """Without waiting for the other end of a pipe."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise linked(path) from None
        raise
    file = io.FileIO(descriptor, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file
