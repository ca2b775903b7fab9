"""A stream: one pass, no epochs, no index, so that nothing can be removed beforehand. How long must
the memory be for copies that come far apart, and what is it worth beside a hard filter?
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

import pfb
from pfb.lab.bench import checks, output
from studies import sets, verdicts
from studies.grid import Cell, judge, run_missing, write_table
from studies.verdicts import Run, paired

StreamName = Literal["logs", "signs"]
STREAMS: tuple[StreamName, ...] = get_args(StreamName)
WINDOWS: dict[StreamName, tuple[int, ...]] = {"logs": (1, 0), "signs": (1024, 0)}
"""Samples within which a stream is shuffled; 1: it comes in its order, 0: all of it is shuffled. A
batch of nothing but frames of one sign teaches nothing, so signs are shuffled among 34 tracks.
"""
MEMORIES = (256, 1024, 4096, 16_384)
ARMS = ("full", "uniform", *(f"copies-{size}" for size in MEMORIES), "filter")
BATCH = 16
PRUNE = 0.5


@dataclass(frozen=True)
class StreamConfig:
    """Train once over a stream, with every arm on every seed. A run that stands in --out with the
    same settings is not done again.
    """

    sets: tuple[StreamName, ...] = STREAMS
    """logs: 22,400 log lines, the 16 systems' in turn, in their order, and shuffled. signs: frames
    of tracks of GTSRB, as a car drives by, shuffled within windows of 1,024, and among all.
    """
    folder: Path = Path("data")
    """Where loghub.npz and gtsrb10.npz lie, see docs/redundancy.md."""
    arms: tuple[str, ...] = ARMS
    """full: every sample. uniform: half of each batch, at random. copies-M: half of each batch, by
    a memory of M. filter: every sample that is no copy of one in a memory of 4,096, gathered to
    batches.
    """
    seeds: tuple[int, ...] = (0, 1, 2)
    minutes: float | None = None
    """Begin no further training after so many."""
    tiny: bool = False
    """Few samples, to try the study itself."""
    out: Path = field(default_factory=lambda: Path("runs/stream"))
    """Folder: one line of numbers for each run (stream.jsonl), and the table (stream.md)."""

    def __post_init__(self) -> None:
        checks.known(STREAMS, sets=self.sets)
        checks.known(ARMS, arms=self.arms)
        checks.at_least(0, seeds=self.seeds)


def run(config: StreamConfig) -> Path:
    """Do what is missing, seed by seed, then write the table; returns its path."""
    torch.set_num_threads(1)
    place = config.out / "stream.jsonl"
    asked = [
        Cell(named(name, window), seed, arm)
        for seed in config.seeds
        for name in config.sets
        for window in WINDOWS[name]
        for arm in config.arms
    ]
    task = functools.lru_cache(2)(lambda name, seed: stream(name, config.folder, seed, config.tiny))

    def train(cell: Cell) -> Run:
        name, window = cell.set.split("/")
        return train_one(cell.arm, task(name, cell.seed), int(window), cell.seed)

    settings = {"batch_size": BATCH, "prune": PRUNE, "tiny": config.tiny}
    run_missing(asked, settings, place, train, config.minutes)
    return write_table(place, render)


def named(name: str, window: int) -> str:
    """A stream and how it is shuffled, as runs call it."""
    return f"{name}/{window}"


def render(runs: list[Run]) -> str:
    """Markdown table: one row for each stream and arm, with the difference to ``uniform`` in pairs
    of seeds.
    """
    rows = []
    for name in dict.fromkeys(run["set"] for run in runs):
        here = [run for run in runs if run["set"] == name]
        for arm in [arm for arm in ARMS if any(run["arm"] == arm for run in here)]:
            mine = [run for run in here if run["arm"] == arm]
            row = [shown(name), f"`{arm}`", len(mine), *(_mean(mine, key) for key in ("compute", "groups_seen"))]
            for metric in ("accuracy", "mean_recall"):
                values = verdicts.by_arm(here, metric)
                told = None if arm == "uniform" else paired(values[arm], values.get("uniform", {}))
                row += [f"{sum(values[arm].values()) / len(values[arm]):.2f}"]
                row += ["" if told is None else f"{told[0]:+.2f} ± {told[1]:.2f}"]
            rows.append(row)
    minus = "minus `uniform`"
    header = ["stream", "arm", "n", "compute", "groups seen", "accuracy, %", minus, "mean recall, %", minus]
    return output.table(header, rows)


def shown(name: str) -> str:
    """A stream's name for people.

    Example:
        >>> shown("logs/1"), shown("signs/1024"), shown("logs/0")
        ('logs, in order', 'signs, shuffled within 1,024', 'logs, shuffled')
    """
    stream, window = name.split("/")
    how = {"0": "shuffled", "1": "in order"}.get(window, f"shuffled within {int(window):,}")
    return f"{stream}, {how}"


def _mean(runs: list[Run], key: str) -> str:
    return f"{sum(run[key] for run in runs) / len(runs):.0%}"


def stream(name: StreamName, folder: Path, seed: int, tiny: bool = False) -> sets.Task:
    """A set's training samples in the order in which they come: log lines of the systems in turn,
    one line each; tracks one after the other, each frame by frame, in an order by the seed.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    if name == "signs":
        task = sets.make("signs", folder, seed, tiny=tiny)
        tracks = torch.unique(task.groups)
        turn = torch.randperm(len(tracks), generator=generator)[torch.searchsorted(tracks, task.groups)]
        return sets.reordered(task, turn.argsort(stable=True))
    return sets.log_stream(folder, generator, 200 if tiny else None)


def order(n: int, window: int, generator: torch.Generator) -> Tensor:
    """Places of a stream of n samples, shuffled within windows of so many; 0: all.

    Example:
        >>> order(5, 1, torch.Generator()).tolist()
        [0, 1, 2, 3, 4]
    """
    parts = torch.split(torch.arange(n), window or n)
    return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in parts])


def train_one(arm: str, task: sets.Task, window: int, seed: int) -> Run:
    """Train one arm once over the stream, and judge it. The learning rate follows the stream, not
    the steps: all arms meet the same samples at the same rate.
    """
    torch.manual_seed(seed)
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=5e-4)
    places = order(len(task.y), window, torch.Generator().manual_seed(seed))
    places = places[: len(places) // BATCH * BATCH]
    trained = torch.zeros(len(task.y), dtype=torch.bool)
    count = 0
    for met, index in kept(arm, task, places, seed):
        rate = 0.05 * min(1.0, 10 * met / len(places), 2 * (1 - met / len(places)) + 0.02)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(model(task.augment(task.x[index])), task.y[index])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        trained[index] = True
        count += len(index)
    return {
        "compute": count / len(places),
        "groups_seen": len(torch.unique(task.groups[trained])) / len(torch.unique(task.groups)),
        **judge(model, task),
    }


def kept(arm: str, task: sets.Task, places: Tensor, seed: int) -> Iterator[tuple[int, Tensor]]:
    """How many samples have come by, and the indices of those that are trained on, batch by
    batch.
    """
    if arm == "filter":
        yield from _filtered(task, places)
        return
    ways: dict[str, Any] = {"full": {"prune": 0.0}, "uniform": {"rule": pfb.Uniform()}}
    if arm.startswith("copies-"):
        ways[arm] = {"density": pfb.NeighbourMemory(int(arm.removeprefix("copies-")))}
    pruner = pfb.BatchPruner(**{"prune": PRUNE, "seed": seed, **ways[arm]})
    for i, index in enumerate(torch.split(places, BATCH), 1):
        yield i * BATCH, pruner(task.prepare(task.x[index]), task.y[index], index)[2]


def _filtered(task: sets.Task, places: Tensor) -> Iterator[tuple[int, Tensor]]:
    """First come, first kept: what is a copy of a row in the memory is dropped."""
    sketch, memory = pfb.Sketch(), pfb.NeighbourMemory(4096)
    generator = torch.Generator().manual_seed(0)
    waiting = places[:0]
    for i, index in enumerate(torch.split(places, BATCH), 1):
        x = task.prepare(task.x[index])
        features = sketch(x)
        is_copy = memory.near_copies(features, sketch.own_view(x, generator)) >= 1
        waiting = torch.cat([waiting, index[~is_copy]])
        memory.accumulate(features)
        memory.apply()
        while len(waiting) >= BATCH:
            yield i * BATCH, waiting[:BATCH]
            waiting = waiting[BATCH:]
