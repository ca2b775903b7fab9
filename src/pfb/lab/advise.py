"""``pfb advise``: the adviser on the data and models of ``pfb train``, with a page and a list of
copies.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader

import pfb
from pfb.lab import files
from pfb.lab.errors import RunError
from pfb.lab.report import advice as page
from pfb.lab.train import task
from pfb.lab.train.config import TrainConfig, in_flags
from pfb.lab.train.data import FOLDER, Source, load
from pfb.lab.train.data.pixels import endings
from pfb.lab.train.loaders import length
from pfb.lab.train.models import build_for
from pfb.lab.train.terminal import progress_bar

console = Console()


def advise(
    config: TrainConfig, samples: int, plan: bool = True, out: Path = Path("advice.html"), export: Path | None = None
) -> pfb.Advice:
    """Look at data and model, print the advice, and write a page and perhaps a list of near-copies.

    Args:
        config: data, model, batch size, seed and device; the other settings play no part.
        samples: how many to look at, drawn at random.
        plan: measure the cost at each cut, too.
        out: the page, ``.html``.
        export: a ``.csv`` file with a row for each sample that has near-copies: ``index`` in the
            training set, ``file`` of an image folder, ``group``, and whether it is the one to be
            ``kept``.

    Raises:
        RunError: bad settings or data, a model that does not fit them, or a place that cannot be
            written.
    """
    if samples < 2:
        raise RunError(f"--samples must be at least 2 (got {samples})")
    _check_place("out", out, ".html")
    if export is not None:
        _check_place("export", export, ".csv")
    source = load(config)
    names = file_names(config, source)
    found = _look(config, source, samples, plan)
    print(found)
    _say_how_to_go_on(found, config, export)
    groups = page.pictured(found.groups, source, names)
    with files.replacing(out) as draft:
        draft.write_text(page.html(found, f"{config.data}, {config.model}", groups), encoding="utf-8")
    print(f"wrote {out}")
    if export is not None:
        _export(found, names, export)
        print(
            f"wrote {export}: {sum(map(len, found.groups)):,} samples with near-copies, {len(found.to_drop):,} to drop"
        )
    return found


def file_names(config: TrainConfig, source: Source) -> list[str] | None:
    """The file of each training sample, below the folder; ``None`` for data that have none."""
    if not config.data.startswith(FOLDER):
        return None
    from torchvision.datasets.folder import find_classes, make_dataset

    root = Path(config.data.removeprefix(FOLDER)).expanduser()
    images = endings()

    def is_image(path: str) -> bool:
        return Path(path).suffix.lower() in images and not Path(path).name.startswith(".")

    found = make_dataset(root / "train", find_classes(root / "train")[1], is_valid_file=is_image, allow_empty=True)
    if len(found) != length(source.train):
        raise RunError(f"the files in {root / 'train'} changed while they were read; try again")
    return [Path(file).relative_to(root).as_posix() for file, _ in found]


def _look(config: TrainConfig, source: Source, samples: int, plan: bool) -> pfb.Advice:
    available = torch.accelerator.is_available() and not config.cpu
    device = torch.accelerator.current_accelerator() if available else torch.device("cpu")
    order = torch.randperm(length(source.train), generator=torch.Generator().manual_seed(config.seed))[:samples]
    loader: DataLoader[Any] = DataLoader(
        source.train,
        batch_size=config.batch_size,
        sampler=order.tolist(),
        num_workers=0 if source.collate is not None else config.workers,
        collate_fn=source.collate,
    )
    torch.manual_seed(config.seed)
    model = build_for(source, config.model).to(device)

    def prepare(batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        return source.prepare_test(batch["input"].to(device)), batch["label"], batch["index"]

    def loss(output: Any, label: Tensor) -> Tensor:
        return task.losses(task.logits_of(output, label), label).mean()

    with progress_bar(console, console.is_terminal) as bar:
        try:
            return pfb.advise(
                model, loader, loss=loss, prepare=prepare, samples=samples, plan=plan, progress=_teller(bar)
            )
        except (ValueError, TypeError) as error:
            raise in_flags(error) from error


def _teller(bar: Progress) -> Callable[[str, int, int | None], None]:
    """A bar for each thing that is done, or a line where nobody sees bars."""
    bars: dict[str, Any] = {}

    def tell(what: str, done: int, total: int | None) -> None:
        if what not in bars:
            bars[what] = bar.add_task(what, total=total)
            if bar.disable:
                bar.console.print(f"{what} ...")
        bar.update(bars[what], completed=done)

    return tell


def _say_how_to_go_on(found: pfb.Advice, config: TrainConfig, export: Path | None) -> None:
    if found.recommendation == "block":
        print(
            f"  pfb train --data {config.data} --model {config.model} --method inverse-density --shallow recompute "
            f"--prune {found.prune:g} --memory {found.memory} --control short"
        )
    if found.groups and export is None:
        print("  --export copies.csv lists all near-copies, and which to keep")


def _check_place(flag: str, place: Path, ending: str) -> None:
    """Before minutes are spent on what cannot be written."""
    if place.suffix != ending:
        raise RunError(f"--{flag} must end in {ending} (got {place})")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(place.parent, os.W_OK) or place.is_dir():
            raise PermissionError(None, "not writable")
    except OSError as error:
        raise RunError(f"--{flag} {place} cannot be written ({error.strerror or error})") from error


def _export(found: pfb.Advice, names: list[str] | None, place: Path) -> None:
    with files.replacing(place) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["index", "file", "group", "kept"])
        for number, group in enumerate(found.groups, start=1):
            for i in group:
                table.writerow([i, names[i] if names else "", number, "yes" if i == group[0] else "no"])
