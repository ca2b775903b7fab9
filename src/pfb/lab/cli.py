"""The command line: ``pfb train``, ``plan``, ``report`` and ``bench``. Settings come from the
dataclasses they configure.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from pfb.lab.bench import accuracy, memory, profile, speed
from pfb.lab.errors import RunError
from pfb.lab.train.config import TrainConfig

app = tyro.extras.SubcommandApp()
bench_app = tyro.extras.SubcommandApp()


@app.command
def train(
    config: Annotated[TrainConfig, tyro.conf.arg(name="")], resume: Path | None = None, dry_run: bool = False
) -> None:
    """Train a model and show what pruning saved. Settings in a file: pfb train --config FILE (.toml
    or .json), flags win.

    Args:
        config: all settings.
        resume: continue the run in this folder with its own settings, after its last finished
            epoch.
        dry_run: check everything, take a full and a pruned step, and write nothing.
    """
    from pfb.lab.train.folder import RunFolder
    from pfb.lab.train.loop import dry_run as check
    from pfb.lab.train.loop import train as run

    if resume is None:
        (check if dry_run else run)(config)
        return
    if dry_run:
        raise RunError("--dry-run checks a run that has not begun; leave out --resume")
    if changed := config.changed():
        raise RunError(f"--resume continues a run with its own settings; leave out --{', --'.join(changed)}")
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

    import pfb
    from pfb.lab.train.models import build

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = build(model, classes, 3, image_size).to(device, memory_format=layout)  # type: ignore[call-overload]
    image = torch.randn(batch_size, 3, image_size, image_size, device=device).to(memory_format=layout)
    with Progress(transient=True) as progress, torch.autocast(image.device.type, torch.bfloat16, precision == "bf16"):
        task = progress.add_task("measuring", total=repeats + 2)
        try:
            found = pfb.plan(network, image, prune, cut=cut, repeats=repeats, on_round=lambda: progress.advance(task))
        except ValueError as error:
            raise RunError(str(error)) from error
    print(found)


@app.command
def bench() -> None:
    """Benchmarks: accuracy, speed, memory, profile; see pfb bench --help."""


def add_benchmark(app: tyro.extras.SubcommandApp, module: ModuleType) -> None:
    """A subcommand for a module with ``run(config)``; the settings' docstring is its help."""
    settings = get_type_hints(module.run)["config"]

    def command(config: Any) -> None:
        print(f"wrote {module.run(config)}")

    command.__annotations__["config"] = Annotated[settings, tyro.conf.arg(name="")]
    command.__doc__ = settings.__doc__
    app.command(name=module.__name__.rpartition(".")[2])(command)


for _module in (accuracy, speed, memory, profile):
    add_benchmark(bench_app, _module)


def _train_from_file(args: list[str]) -> None:
    """``pfb train`` with the defaults that a file gives."""
    place = args.index("--config")
    if place + 1 == len(args):
        raise RunError("--config needs a file (.toml or .json)")
    base = TrainConfig.from_file(Path(args[place + 1]))

    def train_from_file(
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = base,
        resume: Path | None = None,
        dry_run: bool = False,
    ) -> None:
        train(config, resume, dry_run)

    train_from_file.__doc__ = train.__doc__
    tyro.cli(train_from_file, prog="pfb train", args=args[:place] + args[place + 2 :])


def main(args: list[str] | None = None) -> None:
    """Entry point of ``pfb``: exits with 1 for a refused or failed run, 2 for unusable arguments,
    130 for Ctrl-C.
    """
    args = sys.argv[1:] if args is None else args
    with exit_codes():
        if args[:1] == ["bench"]:
            bench_app.cli(prog="pfb bench", args=args[1:])
        elif args[:1] == ["train"] and "--config" in args:
            _train_from_file(args[1:])
        else:
            app.cli(prog="pfb", args=args)


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
