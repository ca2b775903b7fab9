"""Training sets without their near-copies: ``--drop``."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import torch
from torch import Tensor

from pfb.copies.acting import Groups, by_label, kept
from pfb.copies.files import Member, read_groups, samples_of
from pfb.lab.errors import RunError
from pfb.lab.train.data.folder import OnDisk, small
from pfb.lab.train.data.source import InMemory, Source, labels_of
from pfb.lab.train.data.split import copies_among
from pfb.lab.train.options.config import TrainConfig

AUTO = "auto"
SKETCHED = 256  # samples at a time


def left(source: Source, config: TrainConfig) -> Source:
    """The same data with one sample of each group of near-copies (and label) in training.

    Raises:
        RunError: there are no near-copies, or ``--drop`` is a list of other data.
    """
    if config.drop is None:
        return source
    n = len(labels_of(source.train))
    labels = labels_of(source.train).tolist() if source.task == "classification" else None
    if config.drop == AUTO:
        groups = copies_among(inputs(source), images=source.task != "language").groups
    else:
        if config.train_samples is not None:
            raise RunError("--drop FILE counts the whole training set: leave out --train-samples, or use --drop auto")
        groups = _listed(Path(config.drop), source.names, n)
    parts = groups if labels is None else by_label(groups, labels)
    if not parts:
        where = "among the" if config.drop == AUTO else f"in {config.drop} of the"
        raise RunError(f"--drop: there are no near-copies {where} {n:,} training samples; leave it out")
    keep = kept(parts, n)
    if os.environ.get("RANK", "0") == "0":
        mixed = "" if labels is None else _of_conflicts(sum(len({labels[i] for i in g}) > 1 for g in groups))
        _say(f"--drop {config.drop}: {len(keep):,} of {n:,} training samples are left{mixed}")
    names = None if source.names is None else [source.names[i] for i in keep.tolist()]
    return dataclasses.replace(source, train=_only(source, keep), names=names)


def inputs(source: Source) -> Iterator[Tensor]:
    """All training samples without augmentation, a part at a time."""
    if isinstance(train := source.train, OnDisk):
        return small(train.files)
    assert isinstance(train, InMemory)
    return map(source.prepare_test, torch.split(train.images, SKETCHED))


def _only(source: Source, keep: Tensor) -> InMemory | OnDisk:
    if isinstance(train := source.train, OnDisk):
        return OnDisk([train.files[i] for i in keep.tolist()], train.transform, train.thumbnail)
    assert isinstance(train, InMemory)
    return InMemory(train.images[keep], train.labels[keep])


def _of_conflicts(count: int) -> str:
    if not count:
        return ""
    what = "group of near-copies holds" if count == 1 else "groups of near-copies hold"
    return f"; {count:,} {what} several classes, of which one of each is left"


def _say(text: str) -> None:
    from pfb.lab.train.terminal import console

    console.print(text, highlight=False, soft_wrap=True)


def _listed(place: Path, names: list[str] | None, n: int) -> Groups:
    """The list's groups as indices of the training set."""
    try:
        groups, of = read_groups(place), samples_of(place)
    except (OSError, ValueError) as error:
        raise RunError(f"--drop must be auto or a list of near-copies ({error})") from error
    if of not in (None, n):
        raise RunError(f"--drop {place} was made of {of:,} samples, and {n:,} are trained on: {HOW}")
    members = [member for group in groups for member in group]
    index = _indices(members, names, n)
    if foreign := [str(member) for member in members if member not in index]:
        raise RunError(
            f"--drop {place} names {len(foreign):,} of {len(members):,} samples that are not in the training set, or "
            f"not in it once ({', '.join(foreign[:3])}): {HOW}"
        )
    found = tuple(tuple(index[member] for member in group) for group in groups)
    if len({i for group in found for i in group}) < len(members):
        raise RunError(f"--drop {place} names a sample twice: {HOW}")
    return found


HOW = "make the list anew, pfb advise --data ... --export copies.csv"


def _indices(members: Sequence[Member], names: list[str] | None, n: int) -> dict[Member, int]:
    """Where each member is: an index as it is, a file by as many last parts of its path as the
    shorter one has.
    """
    found: dict[Member, int] = {m: m for m in members if isinstance(m, int) and 0 <= m < n}
    if names is None:
        return found
    wanted = [m for m in members if isinstance(m, str)]
    lengths = {min(len(PurePath(name).parts), len(PurePath(m).parts)) for name in names[:1] for m in wanted}
    for length in lengths:
        ends = [PurePath(name).parts[-length:] for name in names]
        often, place = Counter(ends), {end: i for i, end in enumerate(ends)}
        for m in wanted:
            end = PurePath(m).parts[-length:]
            if m not in found and len(end) == length and often[end] == 1:
                found[m] = place[end]
    return found
