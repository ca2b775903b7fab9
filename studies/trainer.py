"""What does the trainer cost? Runs of ``pfb train`` beside a plain loop of the same recipe."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device
from pfb.lab.errors import RunError
from pfb.lab.train import optim
from pfb.lab.train.config import TrainConfig, without_folders
from pfb.lab.train.data import Source, load
from pfb.lab.train.data.source import InMemory
from pfb.lab.train.models import build_for
from pfb.utils.timing import Clock, Spread, clock_of, in_another_order, synchronize

OVERHEAD = 0.02
"""Most that the trainer may take longer than the plain loop."""
ARMS = ("trainer", "plain")
PARTS = {"epochs": "training steps, with what loads them", "whole": "whole run: with evaluation and checkpoints"}


@dataclass(frozen=True)
class TrainerConfig:
    """Train on full data with ``pfb train`` and with a plain loop in turn; compare their time."""

    recipe: TrainConfig = field(default_factory=lambda: TrainConfig(model="cifar-resnet20", epochs=3))
    """Images that are kept in memory; nothing is blocked."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A pair of runs for each; one more pair, of an epoch, is not counted."""
    out: Path = Path("runs/trainer.json")
    """All numbers (.json) and, beside it, the table (.md)."""

    def __post_init__(self) -> None:
        checks.at_least(0, seeds=self.seeds)
        plain = TrainConfig()
        for name in ("ema", "clip", "accumulate", "mix", "compile", "precision"):
            if getattr(self.recipe, name) != getattr(plain, name):
                raise RunError(f"--recipe.{name} is nothing that the plain loop does; leave it out")


def run(config: TrainerConfig) -> Path:
    """Train, write the numbers and the table; returns the table's path."""
    recipe = dataclasses.replace(config.recipe, method="full", overwrite=True)
    device = Device("cpu" if recipe.cpu else None).start()
    source = load(recipe)
    if not isinstance(source.train, InMemory) or not isinstance(source.test, InMemory):
        raise RunError(f"--recipe.data must be small images, which are kept in memory (got {recipe.data})")
    _pair(dataclasses.replace(recipe, epochs=1), source, device, 0)
    pairs = [
        {"seed": seed, **_pair(dataclasses.replace(recipe, seed=seed), source, device, number)}
        for number, seed in enumerate(config.seeds)
    ]
    settings = {"recipe": without_folders(asdict(recipe)), "seeds": config.seeds}
    steps = recipe.epochs * (len(source.train) // recipe.batch_size)
    return output.write(config.out, {**output.origin(settings, device), "steps": steps, "pairs": pairs}, render)


def render(numbers: dict[str, Any]) -> str:
    """Markdown table: seconds, and how much longer the trainer takes, pair by pair."""
    pairs, rows = numbers["pairs"], []
    for part, title in PARTS.items():
        taken = {arm: [pair[arm][part] for pair in pairs] for arm in ARMS}
        times = [_cell(Spread.of(seconds)) for seconds in taken.values()]
        more = Spread.of_ratios(taken["trainer"], taken["plain"])
        low, median, high = (f"{100 * (value - 1):+.1f}" for value in (more.low, more.median, more.high))
        goal = f"at most {OVERHEAD:.0%}" + ("" if more.median - 1 <= OVERHEAD else " (missed)")
        rows.append([title, *times, f"{median} ({low} to {high})", goal])
    per_step = {arm: [1000 * pair[arm]["epochs"] / numbers["steps"] for pair in pairs] for arm in ARMS}
    longer = Spread.of([a - b for a, b in zip(*per_step.values(), strict=True)])
    cells = (_cell(Spread.of(times)) for times in per_step.values())
    rows.append(["a step, ms", *cells, f"{longer.median:+.2f} ms ({longer.low:+.2f} to {longer.high:+.2f})", ""])
    accuracy = {arm: sum(pair[arm]["accuracy"] for pair in pairs) / len(pairs) for arm in ARMS}
    rows.append(["test accuracy, mean, %", *(f"{100 * accuracy[arm]:.1f}" for arm in ARMS), "", ""])
    header = ["", "pfb train, s (quartiles)", "plain loop, s (quartiles)", "longer in pairs, % (quartiles)", "goal"]
    return output.table(header, rows)


def plain_loop(config: TrainConfig, source: Source, device: torch.device, folder: Path) -> dict[str, float]:
    """What one writes without a trainer: train, evaluate and keep a checkpoint every epoch.

    Returns:
        Seconds of the ``epochs`` without evaluation, and the test ``accuracy``.
    """
    assert isinstance(source.train, InMemory) and isinstance(source.test, InMemory)
    torch.manual_seed(config.seed)
    model = build_for(source, config.model).to(device)
    images, labels, n = source.train.images, source.train.labels, config.batch_size
    optimizer = optim.optimizer(model, config)
    schedule = optim.schedule(optimizer, config, config.epochs * (len(images) // n))
    now, seconds, accuracy = _now(device), 0.0, 0.0
    for epoch in range(config.epochs):
        begin = now()
        model.train()
        order = torch.randperm(len(images))
        for start in range(0, len(images) - n + 1, n):
            index = order[start : start + n]
            x = source.prepare_train(images[index].to(device))
            loss = F.cross_entropy(model(x), labels[index].to(device), label_smoothing=config.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        seconds += now() - begin
        accuracy = _accuracy(model, source.test.images, source.test.labels, source.prepare_test, n, device)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        torch.save(state, folder / f"checkpoint-{epoch}.pt")
    return {"epochs": seconds, "accuracy": accuracy}


@torch.no_grad()
def _accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    prepare: Callable[[Tensor], Tensor],
    n: int,
    device: torch.device,
) -> float:
    model.eval()
    right = torch.zeros((), device=device)
    for start in range(0, len(images), n):
        x, y = images[start : start + n].to(device), labels[start : start + n].to(device)
        right += (model(prepare(x)).argmax(1) == y).sum()
    return float(right) / len(images)


def _pair(config: TrainConfig, source: Source, device: torch.device, number: int) -> dict[str, Any]:
    """A run of each, in the order of this pair."""
    from pfb.lab.train.loop import train

    now, pair = _now(device), {}
    for arm in in_another_order(ARMS, number):
        with tempfile.TemporaryDirectory() as folder:
            begin = now()
            if arm == "plain":
                found = plain_loop(config, source, device, Path(folder))
            else:
                summary = train(dataclasses.replace(config, out=Path(folder) / "run"), source=source)
                seconds = summary["train_cpu_seconds" if device.type == "cpu" else "train_seconds"]
                found = {"epochs": seconds, "accuracy": summary["test_accuracy"]}
            pair[arm] = {"whole": now() - begin, **found}
    return pair


def _now(device: torch.device) -> Clock:
    clock = clock_of("cpu" if device.type == "cpu" else "wall")

    def now() -> float:
        synchronize(device)
        return clock()

    return now


def _cell(seconds: Spread) -> str:
    return f"{seconds.median:.2f} ({seconds.low:.2f} to {seconds.high:.2f})"
