"""The command line: ``pfb train``, ``plan``, ``report`` and ``bench``. Settings come from the dataclasses they configure."""

from __future__ import annotations

import errno
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pfb.bench.accuracy import AccuracyConfig
from pfb.bench.agreement import AgreementConfig
from pfb.bench.criterion import CriterionConfig
from pfb.bench.memory import MemoryConfig
from pfb.bench.plan import PlanConfig
from pfb.bench.profile import ProfileConfig
from pfb.bench.scoring import ScoringConfig
from pfb.bench.speed import SpeedConfig
from pfb.bench.suite import SuiteConfig
from pfb.train.config import TrainConfig
from pfb.train.errors import RunError

app = tyro.extras.SubcommandApp()
bench_app = tyro.extras.SubcommandApp()


@app.command
def train(
    config: Annotated[TrainConfig, tyro.conf.arg(name="")], resume: Path | None = None, dry_run: bool = False
) -> None:
    """Train a model and show what pruning saved. Settings in a file: pfb train --config FILE (.toml or .json), flags win.

    Args:
        config: all settings.
        resume: continue the run in this folder with its own settings, after its last finished epoch.
        dry_run: check everything, take a full and a pruned step, and write nothing.
    """
    from pfb.train.loop import dry_run as check
    from pfb.train.loop import train as run

    if resume is None:
        (check if dry_run else run)(config)
        return
    if dry_run:
        raise RunError("--dry-run checks a run that has not begun; leave out --resume")
    if changed := config.changed():
        raise RunError(f"--resume continues a run with its own settings; leave out --{', --'.join(changed)}")
    if not (resume / "config.json").is_file():
        raise RunError(f"--resume {resume}: there is no run (no config.json)")
    run(TrainConfig.from_json((resume / "config.json").read_text()).moved_to(resume), resume=True)


@app.command
def report(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], out: Path | None = None) -> None:
    """Write one page on one or several runs: curves, pruned share, densities, and the samples kept most and least.

    Args:
        runs: folders of runs; or result files of pfb bench speed, of which the time saved is drawn against the share pruned.
        out: the page, .html or .png; by default report.html beside the first.
    """
    from pfb.report import write

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
    from pfb.train.models import build

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
    """Benchmarks: accuracy, criterion, agreement, speed, memory, profile, scoring, plan, suite, zoo; see pfb bench --help."""


@bench_app.command
def accuracy(config: Annotated[AccuracyConfig, tyro.conf.arg(name="")]) -> None:
    """Compare methods on one recipe over several seeds."""
    from pfb.bench.accuracy import run

    print(f"wrote {run(config)}")


@bench_app.command
def speed(config: Annotated[SpeedConfig, tyro.conf.arg(name="")]) -> None:
    """Time full, pruned and ideal training steps in turn."""
    from pfb.bench.speed import run

    print(f"wrote {run(config)}")


@bench_app.command
def scoring(config: Annotated[ScoringConfig, tyro.conf.arg(name="")]) -> None:
    """Time scoring against samples, centers and dimensions, beside the literal form of the equations."""
    from pfb.bench.scoring import run

    print(f"wrote {run(config)}")


@bench_app.command
def memory(config: Annotated[MemoryConfig, tyro.conf.arg(name="")]) -> None:
    """Find the largest batch that fits, full and pruned."""
    from pfb.bench.memory import run

    print(f"wrote {run(config)}")


@bench_app.command
def profile(config: Annotated[ProfileConfig, tyro.conf.arg(name="")]) -> None:
    """Time each part of a training step, full and pruned."""
    from pfb.bench.profile import run

    print(f"wrote {run(config)}")


@bench_app.command
def suite(config: Annotated[SuiteConfig, tyro.conf.arg(name="")]) -> None:
    """Measure one device: every benchmark of speed and memory with the project's published settings."""
    from pfb.bench.suite import run

    print(f"wrote {run(config)}")


@bench_app.command(name="plan")
def bench_plan(config: Annotated[PlanConfig, tyro.conf.arg(name="")]) -> None:
    """Compare what pfb plan predicts with what is then measured."""
    from pfb.bench.plan import run

    print(f"wrote {run(config)}")


@bench_app.command
def criterion(config: Annotated[CriterionConfig, tyro.conf.arg(name="")]) -> None:
    """Relate the density at several cuts to loss, gradient and class."""
    from pfb.bench.criterion import run

    print(f"wrote {run(config)}")


@bench_app.command
def agreement(config: Annotated[AgreementConfig, tyro.conf.arg(name="")]) -> None:
    """Compare what cheaper scoring passes and reduced features choose."""
    from pfb.bench.agreement import run

    print(f"wrote {run(config)}")


@bench_app.command
def zoo(out: Path = Path("docs/zoo.md")) -> None:
    """Attach to many architectures in both wirings, train two steps of each, and write the table.

    Args:
        out: the table.
    """
    from pfb.bench.zoo import run

    print(f"wrote {run(out)}")


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
    """Entry point of ``pfb``: exits with 1 for a refused or failed run, 2 for unusable arguments, 130 for Ctrl-C."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("pfb").setLevel(logging.INFO)
    args = sys.argv[1:] if args is None else args
    try:
        if args[:1] == ["bench"]:
            bench_app.cli(prog="pfb bench", args=args[1:])
        elif args[:1] == ["train"] and "--config" in args:
            _train_from_file(args[1:])
        else:
            app.cli(prog="pfb", args=args)
    except RunError as error:
        print(f"pfb: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(
            f"pfb: {error}. All finished epochs are on disk; free space, then continue with: pfb train --resume RUN",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            "pfb: interrupted. All finished epochs are on disk; continue with: pfb train --resume RUN", file=sys.stderr
        )
        sys.exit(130)


if __name__ == "__main__":
    main()
