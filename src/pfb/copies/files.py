"""Lists of near-copies as files: ours for other tools, and those of imagededup and fastdup."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from pfb.copies.groups import led

Member = int | str
"""An index, or the name of a file."""
PAIRS = (("from", "to"), ("filename_from", "filename_to"), ("img_filename_from", "img_filename_to"))
"""Columns of fastdup's similarity.csv, by its versions."""
FILES, NUMBERS = ("file", "filename", "img_filename"), ("index", "fastdup_id", "__id", "instance_id")
"""Columns of copies.csv and of fastdup's connected_components.csv that say which sample it is."""


def as_text(name: str, groups: Sequence[Sequence[int]], n: int, names: Sequence[str] | None = None) -> str:
    """A list of what was found among n samples, of the kind that the file's ``name`` tells.

    ``.txt``: what to keep, one of ``names`` (or index, without names) a line. ``.csv`` with
    "weights" in its name: ``index``, ``file`` and ``weight`` of all samples. Another ``.csv``: a
    row for each member of a group, ``index``, ``file``, ``group``, whether it is the one ``kept``
    (yes, no), and ``of`` how many samples.

    Args:
        name: of the file.
        groups: indices, the one to keep first.
        n: samples in all.
        names: of all n.

    Raises:
        ValueError: another ending, or not one name for each sample.

    Example:
        >>> print(as_text("keep.txt", [(2, 0)], 3, ["a.png", "b.png", "c.png"]), end="")
        b.png
        c.png
    """
    if not name.endswith((".txt", ".csv")):
        raise ValueError(f"a list must end in .txt or .csv, such as keep.txt, copies.csv or weights.csv (got {name})")
    if names is not None and len(names) != n:
        raise ValueError(f"`names` must be one for each of the {n:,} samples (got {len(names):,})")
    if name.endswith(".txt"):
        surplus = {i for group in groups for i in group[1:]}
        return "".join(f"{names[i] if names else i}\n" for i in range(n) if i not in surplus)
    rows: list[tuple[object, ...]]
    if "weights" in name:
        size = {i: len(group) for group in groups for i in group}
        rows = [("index", "file", "weight")]
        rows += [(i, names[i] if names else "", f"{1 / size.get(i, 1):.9g}") for i in range(n)]
    else:
        rows = [("index", "file", "group", "kept", "of")]
        for number, group in enumerate(groups, start=1):
            rows += [(i, names[i] if names else "", number, "yes" if i == group[0] else "no", n) for i in group]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    return table.getvalue()


def read_groups(place: str | Path) -> tuple[tuple[Member, ...], ...]:
    """Groups of near-copies that this library, imagededup or fastdup found.

    Our ``copies.csv``; imagededup's duplicates as JSON, a dict from file to a list of files or of
    ``[file, score]`` (``find_duplicates(outfile=...)``); fastdup's ``similarity.csv`` (pairs) and
    ``connected_components.csv``. Of pairs groups are made as by :func:`pfb.find_copies`: the one
    with most copies leads those that are its own, so that copies of copies do not chain on.

    Args:
        place: a ``.csv`` or ``.json`` file.

    Returns:
        Names of files, or indices where the list has only these; the one to keep first.

    Raises:
        ValueError: another kind of list; the message says what it holds.
        OSError: it cannot be read.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "duplicates.json"
        >>> _ = place.write_text('{"a.png": [["b.png", 0.97]], "b.png": [["a.png", 0.97]]}')
        >>> read_groups(place)
        (('a.png', 'b.png'),)
    """
    place = Path(place)
    try:
        text = place.read_text(encoding="utf-8-sig", errors="surrogateescape")  # names keep their bytes
        if place.suffix == ".json":
            return _of_pairs(_imagededup(json.loads(text)))
        return _of_table(csv.DictReader(io.StringIO(text, newline="")))
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{place} must be a list of near-copies: copies.csv of pfb advise, imagededup's duplicates as .json, or "
            f"fastdup's similarity.csv or connected_components.csv ({error})"
        ) from error


def samples_of(place: str | Path) -> int | None:
    """Of how many samples our ``copies.csv`` was made; ``None`` for any other list."""
    place = Path(place)
    if place.suffix != ".csv":
        return None
    with place.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        of = next(csv.DictReader(file), {}).get("of")
    return int(of) if of and of.isdecimal() else None


def _imagededup(found: object) -> Iterable[tuple[Member, Member]]:
    if not isinstance(found, dict) or not all(isinstance(others, list) for others in found.values()):
        raise ValueError("it is no dict from files to lists")
    for name, others in found.items():
        for other in others:
            twin = other[0] if isinstance(other, list) and other else other
            if not isinstance(twin, str):
                raise ValueError(f"{name!r} has the duplicate {other!r}")
            yield name, twin


def _of_table(rows: csv.DictReader[str]) -> tuple[tuple[Member, ...], ...]:
    columns = set(rows.fieldnames or ())
    for first, second in PAIRS:
        if {first, second} <= columns:
            return _of_pairs((_member(row[first]), _member(row[second])) for row in rows)
    by = "group" if {"group", "kept"} <= columns else "component_id"
    if by not in columns or not columns & {*FILES, *NUMBERS}:
        raise ValueError(f"its columns are {', '.join(sorted(columns)) or 'none'}")
    groups: dict[str, list[Member]] = defaultdict(list)
    for row in rows:
        group, file = groups[row[by]], next((row[name] for name in FILES if row.get(name)), None)
        member = file or _member(next(row[name] for name in NUMBERS if row.get(name)))
        group.insert(0 if row.get("kept") == "yes" else len(group), member)
    return tuple(sorted((tuple(group) for group in groups.values() if len(group) > 1), key=lambda group: -len(group)))


def _member(text: str) -> Member:
    return int(text) if text.isdecimal() and str(int(text)) == text else text  # 0007 is a file's name


def _of_pairs(pairs: Iterable[tuple[Member, Member]]) -> tuple[tuple[Member, ...], ...]:
    near: dict[Member, dict[Member, None]] = {}
    for one, two in pairs:
        if one != two:
            near.setdefault(one, {})[two] = None
            near.setdefault(two, {})[one] = None
    return led(near)
