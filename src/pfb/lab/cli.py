"""The command line: ``pfb train``, ``advise``, ``report`` and ``bench``. Settings come from the
dataclasses they configure.

What a command needs is imported when it runs, so that help comes at once.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import logging
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NoReturn, get_type_hints

import tyro

import pfb
from pfb.lab.errors import RunError, from_outside, printable
from pfb.lab.train import early
from pfb.lab.train.options.command import whole
from pfb.lab.train.options.config import TrainConfig
from pfb.lab.train.options.presets import Preset
from pfb.lab.train.options.settings import (
    DataSettings,
    ModelSettings,
    OptimisationSettings,
    PruningSettings,
    RunSettings,
)
from pfb.utils.errors import RuleError

BENCHMARKS = ("speed", "memory")

app = tyro.extras.SubcommandApp()


@app.command
def train(
    data: DataSettings,
    model: ModelSettings,
    pruning: PruningSettings,
    optimisation: OptimisationSettings,
    run: RunSettings,
    preset: Preset | None = None,
    config: Path | None = None,
    resume: Path | None = None,
    dry_run: bool = False,
    control: tuple[Literal["full", "short", "small-batch", "uniform", "paper"], ...] = (),
    seeds: tuple[int, ...] = (),
) -> None:
    """Train a model and show what pruning saved. For example:

    pfb train --data imagefolder:PATH --model resnet18 --prune 0.5 --epochs 60 --out runs/a

    Args:
        data: what is trained on.
        model: what is trained, and in which numbers.
        pruning: which samples are left out, where, and when.
        optimisation: how the others are learned from.
        run: where the run lies, and what it says.
        preset: a recipe, over which a file and flags win. cifar10, cifar100: ResNet-18, 200 epochs.
            imagenet-r50: ResNet-50, 90 epochs. imagenet-swin-t: Swin-T, 300 epochs. All these by
            the paper's method. finetune: published weights on --data imagefolder:PATH. Sources are
            in docs/options.md.
        config: a .toml or .json file with settings; flags win over it.
        resume: continue the run in this folder with its own settings, after its last finished
            epoch. With --epochs a finished run gets more, up to so many in all: a cycle of its own,
            whose learning rate and pruning begin anew.
        dry_run: check everything, take a full and a pruned step, and write nothing.
        control: then train its twins, beside --out, and compare. full: full data, as long. short:
            full data for fewer epochs, at the compute of the run. small-batch: as many steps with
            smaller batches, at that compute. uniform: random samples left out instead. paper:
            the paper's method. With --resume: twins of a run that is there.
        seeds: train all with each of these seeds, and say the mean difference with its interval.
    """
    if resume is None:
        early.check_free(run.out, run.overwrite)
        early.check_tracker(run.track)
    from pfb.lab.train.output.folder import RunFolder
    from pfb.lab.train.paired import control as runs

    if resume is not None:
        asked = optimisation.epochs
        epochs = None if asked == RunFolder(resume).config().epochs else asked
        runs.go_on(resume, control, seeds, epochs, run.minutes)
        return
    settings = {
        name: value for group in (data, model, pruning, optimisation, run) for name, value in vars(group).items()
    }
    (runs.check if dry_run else runs.start)(TrainConfig(**settings), control, seeds)


@app.command
def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Path | None = None,
    show: Annotated[bool, tyro.conf.arg(name="open")] = False,
) -> None:
    """Write one page on one or several runs: curves, differences to their twins, pruned share,
    densities, and the samples kept most and least.

    Args:
        runs: folders of runs, or that hold runs.
        out: the page, .html; by default report.html beside the first.
        show: open the page in a browser.
    """
    for place in runs:
        early.folders_of_runs(place)
    if out is not None:
        early.check_output("out", out, (".html",))
    from pfb.lab.report import write

    page = write(list(runs), out)
    print(f"wrote {page}; --open opens it in a browser" if not show else f"wrote {page}")
    if show:
        webbrowser.open(page.resolve().as_uri())


@app.command
def advise(
    data: str = "digits",
    data_root: Path = Path("data"),
    model: str = "",
    batch_size: int = 128,
    image_size: int | None = None,
    split: Literal["folders", "groups"] = "folders",
    samples: int = 20_000,
    workers: int = 2,
    seed: int = 0,
    cpu: bool = False,
    out: Path = Path("advice.html"),
    export: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Look at data and model, and say whether anything can be spared: near-copies, whom the default
    would leave out, broken samples, cost on this device, one recommendation. For example:

    pfb advise --data imagefolder:PATH --model resnet18 --export copies.csv

    Args:
        data: as in pfb train; looked at without augmentation.
        data_root: where cifar10 and cifar100 lie or are downloaded to.
        model: as in pfb train; by default a small one.
        batch_size: samples of a step.
        image_size: side of an image folder's images, as in pfb train.
        split: where an image folder's test set comes from, as in pfb train.
        samples: how many to look at, drawn at random.
        workers: loader processes for images too large to be kept in memory.
        seed: decides which samples are looked at, and in what order.
        cpu: stay on the CPU even if there is a GPU.
        out: page with pictures or text of the largest groups of near-copies.
        export: a list for other tools, of the kind that its name tells: keep.txt (what to keep, a
            file or index a line), copies.csv (all near-copies: index, file, group, whether to keep
            it) or weights.csv (how often to draw each sample).
        overwrite: replace these two if they are there.
    """
    if samples < 2:
        raise RunError(f"--samples must be at least 2 (got {samples})")
    early.check_output("out", out, (".html",), overwrite)
    if export is not None:
        early.check_output("export", export, (".csv", ".txt"), overwrite)
    from pfb.lab.advise import advise as look

    config = TrainConfig(
        data=data,
        data_root=data_root,
        model=model,
        batch_size=batch_size,
        image_size=image_size,
        split=split,
        workers=workers,
        seed=seed,
        cpu=cpu,
        augment=False,
    )
    look(config, samples, out, export)


@app.command
def bench() -> None:
    """Benchmarks: speed, memory; see pfb bench --help."""
    # Listed only: they have a command line of their own, below.


def _run(args: list[str]) -> None:
    description = (
        "Skip near-duplicates while you train, or find and remove them; and Partial Forward Blocking, the paper."
    )
    app.cli(prog="pfb", description=description, args=args, config=(tyro.conf.OmitArgPrefixes,))


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
            _run(["train", *whole(args[1:])])
        else:
            _run(args)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn the errors that a person can act on into one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name need not be UTF-8
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("pfb").setLevel(logging.INFO)
    try:
        yield
    except (RunError, RuleError) as error:
        _leave(str(error))
    except KeyboardInterrupt as interrupt:
        _leave(str(interrupt) if interrupt.args else "interrupted", 130)
    except Exception as error:
        if (said := from_outside(error)) is None:
            raise
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        _leave(f"{said}. Free space, then try again" if full else said)


def _leave(said: str, code: int = 1) -> NoReturn:
    """End with an error, whatever names are in it; a list has a line for each."""
    print("pfb: " + "\n".join(map(printable, said.split("\n"))), file=sys.stderr)
    sys.exit(code)
