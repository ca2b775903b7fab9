"""``pfb advise``: the adviser on the data and models of ``pfb train``, with a page and a list of
copies.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import pfb
from pfb.copies.files import as_text
from pfb.lab import files
from pfb.lab.report import advice as page
from pfb.lab.train.batches.loaders import length
from pfb.lab.train.data import Source, load
from pfb.lab.train.nets.models import build_for
from pfb.lab.train.options.config import TrainConfig, in_flags
from pfb.lab.train.terminal import Bars, console


def advise(
    config: TrainConfig, samples: int, out: Path = Path("advice.html"), export: Path | None = None
) -> pfb.Advice:
    """Look at data and model, print the advice, and write a page and perhaps a list of near-copies.

    Args:
        config: data, model, batch size, seed and device; the other settings play no part.
        samples: how many to look at, drawn at random.
        out: the page, ``.html``.
        export: a list of what was found, of the kind that its name tells, see
            :func:`pfb.copies.files.as_text`: keep.txt, copies.csv or weights.csv.

    Raises:
        RunError: bad settings or data, or a model that does not fit them.
    """
    source = load(config)
    found = _look(config, source, samples)
    print(found)
    if config.split == "groups":
        print(f"  {length(source.test):,} samples set aside of the same data decide nothing; in no list, they are kept")
    _say_how_to_go_on(found, config, export)
    files.write_text(out, page.html(found, f"{config.data}, {config.model}", source))
    print(f"wrote {out}: open it in a browser")
    if export is not None:
        total = length(source.train)
        listed = as_text(export.name, found.copies.parts, total, source.names)
        files.write_text(export, listed, "surrogateescape")
        near, drop = sum(map(len, found.groups)), sum(len(part) - 1 for part in found.copies.parts)
        print(f"wrote {export}: {near:,} of {total:,} samples have near-copies, {drop:,} to drop")
    return found


def _look(config: TrainConfig, source: Source, samples: int) -> pfb.Advice:
    available = torch.accelerator.is_available() and not config.cpu
    device = torch.accelerator.current_accelerator() if available else torch.device("cpu")
    loader, test = (_shuffled(data, config, source, samples) for data in (source.train, source.test))
    tested = None if config.split == "groups" else test  # that is by chance of some groups, and decides nothing
    torch.manual_seed(config.seed)
    model = build_for(source, config.model).to(device)

    def prepare(batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        return source.prepare_test(batch["input"].to(device)), batch["label"], batch["index"]

    bars = Bars(console)
    with bars.shown(), contextlib.ExitStack() as open_one:
        try:
            return pfb.advise(
                model, loader, prepare=prepare, samples=samples, test=tested, progress=_teller(bars, open_one)
            )
        except (ValueError, TypeError) as error:
            raise in_flags(error) from error


def _shuffled(data: Any, config: TrainConfig, source: Source, samples: int) -> DataLoader[Any]:
    order = torch.randperm(length(data), generator=torch.Generator().manual_seed(config.seed))[:samples]
    return DataLoader(
        data,
        batch_size=config.batch_size,
        sampler=order.tolist(),
        num_workers=0 if source.collate is not None else config.workers,
        collate_fn=source.collate,
    )


def _teller(bars: Bars, open_one: contextlib.ExitStack) -> Callable[[str, int, int | None], None]:
    """A bar for each thing that is done, one after the other."""
    told: dict[str, Callable[[int], None]] = {}

    def tell(what: str, done: int, total: int | None) -> None:
        if what not in told:
            open_one.close()
            told[what] = open_one.enter_context(bars.task(what, total))
        told[what](done)

    return tell


def _say_how_to_go_on(found: pfb.Advice, config: TrainConfig, export: Path | None) -> None:
    """The command to train by."""
    same = "".join(
        f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name in ("data_root", "batch_size", "image_size", "split", "seed")
        if (value := getattr(config, name)) != getattr(TrainConfig, name)
    ) + (" --cpu" if config.cpu else "")
    train = f"  pfb train --data {shlex.quote(config.data)} --model {config.model}"
    if found.recommendation in ("prune", "draw", "random"):
        method = "uniform" if found.recommendation == "random" else "copies"
        print(f"{train} --prune {found.prune:g} --method {method} --control short{same}")
    if found.recommendation == "remove":
        listed = export is not None and export.suffix == ".csv" and "weights" not in export.name
        print(f"{train} --drop {shlex.quote(str(export)) if listed else 'auto'} --method full{same}")
    if found.groups and export is None:
        print("  --export copies.csv lists all near-copies, keep.txt what to keep, weights.csv how often to draw each")
