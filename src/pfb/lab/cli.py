"""The command line: ``pfb train``, ``plan``, ``advise``, ``report`` and ``bench``. Settings come
from the dataclasses they configure.

What a command needs is imported when it runs, so that help comes at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_type_hints

import tyro

import pfb
from pfb.lab.errors import RunError
from pfb.lab.train.config import TrainConfig, in_flags, settings_in

BENCHMARKS = ("accuracy", "speed", "memory", "profile")

app = tyro.extras.SubcommandApp()


@app.command
def train(
    settings: Annotated[TrainConfig, tyro.conf.arg(name="")],
    config: Path | None = None,
    resume: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Train a model and show what pruning saved.

    Args:
        settings: all settings.
        config: a .toml or .json file with settings; flags win over it.
        resume: continue the run in this folder with its own settings, after its last finished
            epoch.
        dry_run: check everything, take a full and a pruned step, and write nothing.
    """
    from pfb.lab.train.folder import RunFolder
    from pfb.lab.train.loop import dry_run as check
    from pfb.lab.train.loop import train as run

    if resume is None:
        (check if dry_run else run)(settings)
        return
    if dry_run:
        raise RunError("--dry-run checks a run that has not begun; leave out --resume")
    given = ["config"] if config is not None else [name.replace("_", "-") for name in settings.changed()]
    if given:
        raise RunError(f"--resume continues a run with its own settings; leave out --{', --'.join(given)}")
    run(RunFolder(resume).config(), resume=True)


@app.command
def report(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], out: Path | None = None) -> None:
    """Write one page on one or several runs: curves, pruned share, densities, and the samples kept
    most and least.

    Args:
        runs: folders of runs; or result files of pfb bench speed, of which the time saved is drawn
            against the share pruned.
        out: the page, .html or .png; by default report.html beside the first.
    """
    from pfb.lab.report import write

    print(f"wrote {write(list(runs), out)}")


@app.command
def plan(
    model: str = "resnet18",
    batch_size: int = 128,
    image_size: int = 32,
    classes: int = 10,
    prune: float = 0.4,
    cut: str | None = None,
    precision: Literal["no", "bf16"] = "no",
    channels_last: bool = False,
    repeats: int = 7,
) -> None:
    """Measure on this device what each cut and wiring would save for a model, before any training.

    Args:
        model: as in pfb train.
        batch_size: samples per step.
        image_size: their side.
        classes: outputs of the model.
        prune: share to stop.
        cut: the cut to recommend a wiring for; by default the first stage.
        precision: bf16 plans for mixed precision.
        channels_last: plan for this memory format.
        repeats: counted rounds.
    """
    import torch
    from rich.progress import Progress

    from pfb.lab.train.models import build

    for name, value in (("batch-size", batch_size), ("image-size", image_size), ("classes", classes)):
        if value < 1:
            raise RunError(f"--{name} must be at least 1 (got {value})")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = build(model, classes, 3, image_size).to(device, memory_format=layout)  # type: ignore[call-overload]
    image = torch.randn(batch_size, 3, image_size, image_size, device=device).to(memory_format=layout)
    with Progress(transient=True) as progress, torch.autocast(image.device.type, torch.bfloat16, precision == "bf16"):
        task = progress.add_task("measuring", total=repeats + 2)
        try:
            found = pfb.plan(network, image, prune, cut=cut, repeats=repeats, on_round=lambda: progress.advance(task))
        except ValueError as error:
            raise in_flags(error) from error
    print(found)


@app.command
def advise(
    data: str = "digits",
    data_root: Path = Path("data"),
    model: str = "",
    batch_size: int = 128,
    image_size: int | None = None,
    samples: int = 20_000,
    plan: bool = True,
    workers: int = 2,
    seed: int = 0,
    cpu: bool = False,
    out: Path = Path("advice.html"),
    export: Path | None = None,
) -> None:
    """Look at data and model for some minutes, and say whether anything can be spared: near-copies,
    broken samples, waiting, gradient noise, cost on this device, one recommendation. For example:

    pfb advise --data imagefolder:PATH --model resnet18 --export copies.csv

    Args:
        data: as in pfb train; looked at without augmentation.
        data_root: where cifar10 and cifar100 lie or are downloaded to.
        model: as in pfb train; by default a small one.
        batch_size: samples of a step.
        image_size: side of an image folder's images, as in pfb train.
        samples: how many to look at, drawn at random.
        plan: measure the cost at each cut, too.
        workers: loader processes for images too large to be kept in memory.
        seed: decides which samples are looked at, and in what order.
        cpu: stay on the CPU even if there is a GPU.
        out: page with pictures or text of the largest groups of near-copies.
        export: a .csv file with all near-copies: index, file, group, and whether to keep it.
    """
    from pfb.lab.advise import advise as look
    from pfb.lab.train.config import TrainConfig

    config = TrainConfig(
        data=data,
        data_root=data_root,
        model=model,
        batch_size=batch_size,
        image_size=image_size,
        workers=workers,
        seed=seed,
        cpu=cpu,
        augment=False,
    )
    look(config, samples, plan, out, export)


@app.command
def bench() -> None:
    """Benchmarks: accuracy, speed, memory, profile; see pfb bench --help."""
    # Listed only: they have a command line of their own, below.


def _benchmarks(args: list[str]) -> None:
    benchmarks = tyro.extras.SubcommandApp()
    for name in BENCHMARKS:
        add_benchmark(benchmarks, importlib.import_module(f"pfb.lab.bench.{name}"))
    benchmarks.cli(prog="pfb bench", args=args)


def add_benchmark(app: tyro.extras.SubcommandApp, module: ModuleType) -> None:
    """A subcommand for a module with ``run(config)``; the settings' docstring is its help."""
    settings = get_type_hints(module.run)["config"]

    def command(config: Any) -> None:
        print(f"wrote {module.run(config)}")

    command.__annotations__["config"] = Annotated[settings, tyro.conf.arg(name="")]
    command.__doc__ = settings.__doc__
    app.command(name=module.__name__.rpartition(".")[2])(command)


def _with_file(args: list[str]) -> list[str]:
    """Arguments of ``pfb train`` with the settings of its ``--config`` in front, where flags win
    over them.
    """
    parser = argparse.ArgumentParser(prog="pfb train", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    file = parser.parse_known_args(args)[0].config
    flags: list[str] = []
    for name, value in (settings_in(file) if file else {}).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags.append(f"--{flag}={value}")
    return [*flags, *args]


def main(args: list[str] | None = None) -> None:
    """Entry point of ``pfb``: exits with 1 for a refused or failed run, 2 for unusable arguments,
    130 for Ctrl-C.
    """
    args = sys.argv[1:] if args is None else args
    with exit_codes():
        if args == ["--version"]:
            print(f"pfb {pfb.__version__}")
        elif args[:1] == ["bench"]:
            _benchmarks(args[1:])
        elif args[:1] == ["train"]:
            app.cli(prog="pfb", args=["train", *_with_file(args[1:])])
        else:
            app.cli(prog="pfb", description="Partial Forward Blocking; pfb --version tells which.", args=args)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn the errors that a person can act on into one line and an exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("pfb").setLevel(logging.INFO)
    try:
        yield
    except RunError as error:
        print(f"pfb: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"pfb: {error}. Free space, then try again", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print(f"pfb: {interrupt if interrupt.args else 'interrupted'}", file=sys.stderr)
        sys.exit(130)
