"""A run and its twins: which belong together, what of them is still missing, and how they compare.

The run lies in ``--out``, its twins beside it: ``OUT-short``, and for further seeds ``OUT-seed1``
and ``OUT-short-seed1``. ``control.json`` in ``--out`` says what was asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pfb.lab import files
from pfb.lab.errors import RunError, Stopped
from pfb.lab.train import loop
from pfb.lab.train.batches.loaders import length
from pfb.lab.train.data import Source, load
from pfb.lab.train.options.config import TrainConfig
from pfb.lab.train.output.extension import extended
from pfb.lab.train.output.folder import RunFolder
from pfb.lab.train.paired import twins
from pfb.lab.train.paired.twins import ARMS, Arm, Row
from pfb.lab.train.terminal import console, show
from pfb.utils.errors import first_line

CONTROL = "control.json"


class Plan(NamedTuple):
    """What was asked for: the twins, and the seeds of all, the run's own first."""

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]

    @property
    def alone(self) -> bool:
        """Whether there is the run and nothing else."""
        return not self.arms and len(self.seeds) == 1

    def place(self, out: Path, arm: Arm | None, seed: int) -> Path:
        """The folder of the run, or of its twin, for a seed."""
        out = out if out.name not in ("", "..") else out.resolve()
        suffix = ("" if arm is None else f"-{arm}") + ("" if seed == self.seeds[0] else f"-seed{seed}")
        return out.with_name(out.name + suffix)

    def places(self, out: Path) -> list[Path]:
        """The folders of all, seed by seed."""
        return [self.place(out, arm, seed) for seed in self.seeds for arm in (None, *self.arms)]


def start(config: TrainConfig, arms: tuple[Arm, ...] = (), seeds: tuple[int, ...] = ()) -> list[Row]:
    """Train a run, then its twins, for every seed; returns their comparison, empty for a run alone.

    Args:
        config: of the run.
        arms: the twins.
        seeds: of all; by default that of the run.

    Raises:
        RunError: there is nothing to compare, a folder is not free, or what training itself raises.
    """
    plan = _planned(config, arms, seeds)
    config = dataclasses.replace(config, seed=plan.seeds[0])
    if plan.alone:
        _forget(config)
        loop.train(config)
        return []
    for place in plan.places(config.out):
        RunFolder(place).check_free(config.overwrite)
    _begin(config, plan)
    return _go_on(config, plan)


def go_on(
    out: Path,
    arms: tuple[Arm, ...] = (),
    seeds: tuple[int, ...] = (),
    epochs: int | None = None,
    minutes: float | None = None,
) -> list[Row]:
    """Train what is missing of a run and its twins; further twins and seeds may be asked for.

    Args:
        out: folder of the run.
        arms, seeds: as for :func:`start`.
        epochs: so many in all, for a finished run alone.
        minutes: stop then; for a run alone.

    Raises:
        RunError: there is no run, or as :func:`start`.
    """
    config, stored = dataclasses.replace(RunFolder(out).config(), minutes=minutes), read(out)
    before = stored or Plan((), (config.seed,))
    if minutes is not None and not before.alone:
        raise RunError(f"--minutes ends a run alone, and the one in {out} has twins or further seeds; leave it out")
    plan = _planned(config, (*before.arms, *arms), (*before.seeds, *seeds))
    if plan.alone:
        loop.train(config if epochs is None else extended(config, epochs), resume=True)
        return []
    if epochs is not None:
        raise RunError("--epochs gives more to a run alone, and this one has twins; start them anew, all as long")
    if plan != stored:
        with RunFolder(out).locked():
            _write(out, plan)
    return _go_on(config, plan)


def check(config: TrainConfig, arms: tuple[Arm, ...] = (), seeds: tuple[int, ...] = ()) -> None:
    """All that can be checked of :func:`start`; writes nothing.

    Raises:
        RunError: what the run itself would raise.
    """
    plan = _planned(config, arms, seeds)
    for place in plan.places(config.out):
        RunFolder(place).check_free(config.overwrite)
    loop.dry_run(dataclasses.replace(config, seed=plan.seeds[0]))


def read(out: Path) -> Plan | None:
    """What was asked for when the run in a folder was started; ``None`` for a run alone.

    Raises:
        RunError: the file is damaged.
    """
    try:
        stored = files.read_json(out / CONTROL)
        arms, seeds = (tuple(stored[name]) for name in Plan._fields)
        if not (set(arms) <= set(ARMS) and seeds and all(isinstance(seed, int) for seed in seeds)):
            raise ValueError(f"it says {stored}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{out / CONTROL} is damaged or cannot be read ({first_line(error)})") from error
    return Plan(arms, seeds)


def _planned(config: TrainConfig, arms: tuple[Arm, ...], seeds: tuple[int, ...]) -> Plan:
    """What is asked for, each once and in order."""
    if seeds and config.seed not in (seeds[0], TrainConfig.seed):
        raise RunError(f"--seeds names the seeds of all runs; leave out --seed (got {config.seed})")
    plan = Plan(tuple(arm for arm in ARMS if arm in arms), tuple(dict.fromkeys(seeds or (config.seed,))))
    for seed in plan.seeds:
        dataclasses.replace(config, seed=seed)  # refuses what is none
    if plan.alone:
        return plan
    if config.extended_from > 0:
        raise RunError(
            f"the run in {config.out} was given more epochs after its {config.extended_from}, which no twin can "
            "repeat: start a run of all its epochs anew, with --control or --seeds"
        )
    if config.minutes is not None:
        raise RunError("--minutes ends a run alone; leave it out beside --control and --seeds")
    if plan.arms and (config.method == "full" or config.prune == 0):
        what = "--method full" if config.method == "full" else "--prune 0"
        raise RunError(f"--control compares a run that leaves samples out with its twins (got {what})")
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise RunError(
            f"--control and --seeds train one after the other in one process (got {processes}). Train the run, then "
            "each twin by its own command (--method full; the run's summary says its compute), and let pfb report "
            "compare them"
        )
    return plan


def _begin(config: TrainConfig, plan: Plan) -> None:
    """Clear what an earlier run left in any of the folders, and note in the run's what was asked
    for.
    """
    for place in plan.places(config.out):
        main = place == plan.places(config.out)[0]
        if main or place.exists():
            folder = RunFolder(place)
            folder.claim(config.overwrite)
            with folder.locked():
                (place / CONTROL).unlink(missing_ok=True)  # first: an older plan is never followed
                folder.begin(dataclasses.replace(config, out=place))
                if main:
                    _write(place, plan)


def _forget(config: TrainConfig) -> None:
    """A run that replaces one with twins has none."""
    if (config.out / CONTROL).exists() and os.environ.get("RANK", "0") == "0":
        folder = RunFolder(config.out)
        folder.claim(config.overwrite)
        with folder.locked():
            (config.out / CONTROL).unlink()


def _write(out: Path, plan: Plan) -> None:
    files.write_text(out / CONTROL, json.dumps(plan._asdict()))


def _go_on(config: TrainConfig, plan: Plan) -> list[Row]:
    """Train what is missing, seed by seed, so that an early end leaves complete pairs."""
    config = dataclasses.replace(config, overwrite=True)  # a part without a finished epoch begins again
    out, runs, summaries = config.out, [], []
    with _saying_how_to_go_on(out):
        source = load(config)
        for seed in plan.seeds:
            runs.append(_end_of(dataclasses.replace(config, seed=seed, out=plan.place(out, None, seed)), source))
            compute, samples = runs[0]["compute"], length(source.train)
            for arm, settings in _twins(config, plan.arms, compute, samples).items():
                place = plan.place(out, arm, seed)
                summaries.append(_end_of(dataclasses.replace(settings, seed=seed, out=place), source))
    found = twins.compare([*runs, *summaries])
    rows = found[0] if found else [twins.alone(runs)]
    _note(out, rows)
    show(twins.render(rows))
    for line in (twins.note(runs), *twins.verdicts(rows), *_hints(out, plan)):
        console.print(line, highlight=False, soft_wrap=True)
    return rows


def _twins(config: TrainConfig, arms: tuple[Arm, ...], compute: float, samples: int) -> dict[Arm, TrainConfig]:
    """The settings of the twins, without those that would be full training once more."""
    if config.method in arms:
        raise RunError(f"--control {config.method} is what the run is already; leave it out")
    found = {arm: twins.twin(config, arm, compute, samples) for arm in arms}
    full = twins.twin(config, "full", compute, samples)
    for arm in [arm for arm in found if arm != "full" and found[arm] == full]:
        console.print(
            f"{arm}: the run took {compute:.0%} of full training's operations, which is {config.epochs} epochs again; "
            "left out. Take more --epochs or a larger --prune",
            highlight=False,
        )
        del found[arm]
    return found


def _end_of(config: TrainConfig, source: Source) -> dict[str, Any]:
    """The summary of a part, which is trained as far as it is missing."""
    folder = RunFolder(config.out)
    console.rule(f"{config.out.name}: {twins.described(dataclasses.asdict(config))}, seed {config.seed}")
    summary = folder.summary_of(config)
    if summary is not None:
        console.print(f"{config.out} is finished already", highlight=False)
        return summary
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # of the part before
    return loop.train(config, resume=bool(folder.checkpoints()), source=source)


def _note(out: Path, rows: list[Row]) -> None:
    """Add the comparison to the run's summary."""
    summary = RunFolder(out).summary() or {}
    noted = {**summary, "control": [dataclasses.asdict(row) for row in rows]}
    if noted != summary:
        RunFolder(out).write_summary(noted)


def _hints(out: Path, plan: Plan) -> list[str]:
    place = shlex.quote(str(out))
    more = [f"Three seeds give an interval: pfb train --resume {place} --seeds 0 1 2"] if len(plan.seeds) == 1 else []
    return [*more, f"Curves and samples of all: pfb report {place}"]


@contextlib.contextmanager
def _saying_how_to_go_on(out: Path) -> Iterator[None]:
    """Around all parts: the command that a part would name for itself leaves the others out."""
    way_on = f"All finished epochs are on disk; continue with: pfb train --resume {shlex.quote(str(out))}"
    try:
        yield
    except Stopped as error:
        raise RunError(f"{error.reason}. {way_on}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted. {way_on}") from None
