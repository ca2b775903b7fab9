"""What do tools that look for duplicates find of CIFAR-10's own? People have looked: ciFAIR (Barz
and Denzler, 2020) lists pairs of its test images and the training or test image that they repeat.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On
from pfb.lab.errors import RunError
from pfb.lab.train.data import load
from pfb.lab.train.data.source import InMemory
from pfb.lab.train.options.config import TrainConfig
from studies import tools
from studies.known_copies import write

LISTS = "cifair10"
REPEATS = 1  # ciFAIR's judgment: the same shot, processed in another way; 2 is "very similar"


@dataclass(frozen=True)
class CifairConfig:
    """Write CIFAR-10's test images and training images, with all that are listed, to a folder, and
    have each tool look at it in a process of its own.
    """

    data: str = "cifar10"
    """cifar10, or imagefolder:PATH of it, each class in CIFAR-10's order."""
    folder: Path = Path("data")
    """Where cifair10.npz lies, see docs/copies.md."""
    train_samples: int = 10_000
    """Training images beside the test images, all listed ones among them."""
    on: On = field(default_factory=Device)
    out: Path = Path("runs/cifair.json")
    """All numbers (.json) and, beside it, the table (.md)."""

    def __post_init__(self) -> None:
        self.on.refuse("precision", "channels_last", "clock")
        checks.at_least(0, train_samples=self.train_samples)


def run(config: CifairConfig) -> Path:
    """Look, then write numbers and table; returns the table's path."""
    config.on.start()
    images, pairs, tests = chosen(config)
    with tempfile.TemporaryDirectory() as folder:
        write(images, Path(folder))
        found = tools.found(tools.IMAGE_TOOLS, [folder], config.on.threads)
    rows = []
    for tool, (missing, took) in found.items():
        row: dict[str, Any] = {"tool": tool, "missing": missing, "samples": len(images)}
        if took is not None and not missing:
            told, seconds = took.result[0]
            row |= {**scores(told, pairs, tests), "cpu_seconds": seconds, "peak_bytes": took.peak_bytes}
        rows.append(row)
    settings = asdict(config) | {"data": config.data.rsplit("/", 1)[-1], "folder": ""}
    numbers = output.origin(settings, torch.device("cpu"))
    numbers["versions"] |= tools.installed(tools.IMAGE_TOOLS)
    return output.write(config.out, {**numbers, "rows": rows}, render)


def chosen(config: CifairConfig) -> tuple[Tensor, dict[tuple[int, int], int], int]:
    """Images ``[N, 3, 32, 32]``, the test images first; the listed pairs of their indices with what
    people said of each; and the number of test images.

    Raises:
        RunError: the lists are missing, or ``--data`` is not CIFAR-10.
    """
    place = config.folder / f"{LISTS}.npz"
    if not place.exists():
        raise RunError(f"--folder must hold {LISTS}.npz, see docs/copies.md (got {config.folder})")
    source = load(TrainConfig(data=config.data))
    train, test = source.train, source.test
    with np.load(place, allow_pickle=False) as file:
        lists = {key: torch.from_numpy(file[key]).long() for key in file.files}
    if not (isinstance(train, InMemory) and isinstance(test, InMemory)):
        raise RunError(f"--data must be CIFAR-10 (got {config.data!r})")
    of_train, of_test = places(lists["y_train"], train.labels), places(lists["y_test"], test.labels)
    crossed = [(int(of_test[a]), int(of_train[b]), c) for a, b, c in lists["test_train"].tolist()]
    within = [(int(of_test[a]), int(of_test[b]), c) for a, b, c in lists["test_test"].tolist()]
    listed = sorted({b for _, b, _ in crossed})
    others = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0)).tolist()
    kept = list(dict.fromkeys([*listed, *others]))[: max(len(listed), config.train_samples)]
    place_of = {b: len(test.labels) + i for i, b in enumerate(kept)}
    pairs = {(a, place_of[b]): c for a, b, c in crossed} | {(min(a, b), max(a, b)): c for a, b, c in within}
    return torch.cat([test.images, train.images[torch.tensor(kept)]]), pairs, len(test.labels)


def places(theirs: Tensor, ours: Tensor) -> Tensor:
    """Where each sample of CIFAR-10's order lies in an order that holds each class in the same one.

    Raises:
        RunError: other numbers of classes.

    Example:
        >>> places(torch.tensor([1, 0, 1, 0]), torch.tensor([0, 0, 1, 1])).tolist()
        [2, 0, 3, 1]
    """
    if not torch.equal(torch.bincount(theirs), torch.bincount(ours)):
        raise RunError("--data must be CIFAR-10: the number of images of a class differs from the lists'")
    found = torch.empty_like(theirs)
    found[theirs.argsort(stable=True)] = ours.argsort(stable=True)
    return found


def scores(told: Iterable[tuple[int, int]], pairs: dict[tuple[int, int], int], tests: int) -> dict[str, float]:
    """What a tool tells, beside the list.

    Args:
        told: pairs of indices, in any order.
        pairs: the listed ones, with what people said of each.
        tests: how many of the indices are test images, the first. Pairs of training images are
            listed nowhere and do not count.

    Returns:
        Recall of the pairs that repeat, and of those that are very similar; how many test images
        are called copies, and which part of these is listed with any other image.

    Example:
        >>> told = [(0, 9), (9, 0), (1, 8), (8, 9)]
        >>> scores(told, {(0, 9): 1, (2, 7): 1, (3, 6): 2}, tests=4)
        {'repeats': 0.5, 'similar': 0.0, 'called': 2, 'listed': 0.5}
    """
    unique = {(min(pair), max(pair)) for pair in told}
    of_kind = {kind: [pair for pair, said in pairs.items() if (said <= REPEATS) == kind] for kind in (True, False)}
    recall = {kind: sum(pair in unique for pair in of) / max(1, len(of)) for kind, of in of_kind.items()}
    known = {a for pair in pairs for a in pair}
    called = {a for pair in unique for a in pair if a < tests}
    return {
        "repeats": recall[True],
        "similar": recall[False],
        "called": len(called),
        "listed": len(called & known) / len(called) if called else 1.0,
    }


def render(numbers: dict[str, Any]) -> str:
    """Markdown table."""
    header = ["tool", "recall of repeats", "of very similar", "test images called copies", "of them listed"]
    lines = []
    for row in numbers["rows"]:
        if row["missing"]:
            lines.append([row["tool"], row["missing"], "", "", "", "", ""])
            continue
        shares = [f"{row['repeats']:.3f}", f"{row['similar']:.3f}", f"{row['called']:,}", f"{row['listed']:.3f}"]
        lines.append([row["tool"], *shares, f"{row['cpu_seconds']:.0f}", tools.mib(row["peak_bytes"])])
    return output.table([*header, "CPU seconds", "memory, MiB"], lines)
