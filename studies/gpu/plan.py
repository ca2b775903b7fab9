"""What is measured, in order of worth, and how long each item is expected to take on an H100."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from studies.gpu.settings import GpuConfig

VARIANTS = ("full", "ideal", "copies", "uniform", "paper", "paper-before")
PRUNES = (0.4, 0.5)
PER_SECOND = 6.0  # thousands of samples that one of four workers is expected to train on


@dataclass(frozen=True)
class Item:
    """One thing to be measured.

    Attributes:
        name: of no other item.
        kind: which function of the worker measures it.
        settings: all that decides its result.
        seconds: expected; of a training, until one has ended, see ``work``.
        work: for trainings, thousands of samples to be trained on: their time goes with it.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    seconds: float
    work: float = 0.0


@dataclass
class Plan:
    """The parts of the run.

    Attributes:
        alone: one after the other, with nothing beside them, since they are timed.
        beside: several at once.
        caches: compile what ``last`` needs while trainings run, so that it is found in the cache.
        last: as ``alone``, of compiled models.
    """

    alone: list[Item] = field(default_factory=list)
    beside: list[Item] = field(default_factory=list)
    caches: list[Item] = field(default_factory=list)
    last: list[Item] = field(default_factory=list)

    def everything(self) -> list[Item]:
        return [*self.alone, *self.beside, *self.caches, *self.last]


def plan(config: GpuConfig) -> Plan:
    """All items of the settings."""
    found = Plan()
    common = {"seed": 0, "tiny": config.tiny, "size": 32 if config.tiny else 224, "batch": 8 if config.tiny else 256}
    small = {**common, "batch": 8 if config.tiny else 64}
    found.alone.append(Item("waits", "waits", {**small, "model": "resnet50"}, 1 if config.tiny else 15))
    for model, prune in itertools.product(("resnet50", "swin_t"), PRUNES):
        found.alone.append(_steps(config, common, model, "eager", prune, VARIANTS, 25))
    # Behind the first model, which matters most.
    sizes = (64, 256) if config.tiny else (4096, 65_536)
    calls = {"seconds": 0.1, "block": 1} if config.tiny else {"seconds": 1.0, "block": 20}
    found.alone[3:3] = [
        Item(
            f"judging/{what}/{memory}", "judging", {**common, **of, **calls, "memory": memory}, 1 if config.tiny else 5
        )
        for what, of, memory in (
            ("images", {"model": "resnet50"}, sizes[0]),
            ("images", {"model": "resnet50"}, sizes[1]),
            ("tokens", _text(config), sizes[0]),
        )
    ]
    found.alone.append(_steps(config, {**common, **_text(config)}, "gpt2", "eager", 0.4, VARIANTS[:4], 25))
    for model in ("resnet50", "swin_t"):
        seconds = {"resnet50": 60, "swin_t": 70}[model]
        item = _steps(config, common, model, "compiled", 0.4, VARIANTS, seconds)
        found.last.append(item)
        found.caches.append(
            Item(f"cache/{model}", "steps", {**item.settings, "only_warm_up": True}, 1 if config.tiny else 100)
        )
    found.beside += trainings(config)
    if config.only:
        for items in (found.alone, found.beside, found.caches, found.last):
            items[:] = [item for item in items if item.name.startswith(tuple(config.only.split(",")))]
    return found


def _text(config: GpuConfig) -> dict[str, Any]:
    return {"model": "gpt2", "batch": 8 if config.tiny else 16, "size": 16 if config.tiny else 1024}


def _steps(
    config: GpuConfig,
    common: dict[str, Any],
    model: str,
    mode: str,
    prune: float,
    variants: tuple[str, ...],
    seconds: float,
) -> Item:
    settings = {
        **common,
        "model": model,
        "mode": mode,
        "backend": config.backend,
        "prune": prune,
        "variants": list(variants),
        "seconds": 0.1 if config.tiny else 12.0,
        "block": 1 if config.tiny else 3,
    }
    return Item(f"steps/{model}/{mode}/{prune:g}", "steps", settings, 1 if config.tiny else seconds)


# Trainings

ARMS = {
    "plain": ("full", "short", "uniform", "paper", "uniform-inside", "copies"),
    "clips": ("full", "short", "uniform", "copies", "oracle", "removed-true"),
    "few": ("full", "uniform", "hardest"),
}
"""By the kind of data.

``full``: all samples. ``uniform``, ``copies``: left out before the model by ``pfb.BatchPruner``,
from 2/90 to 79/90 of training. ``paper``: ``pfb.attach`` with ``pfb.paper``, whose share rises over
the first half of that window. ``uniform-inside``: the same with random samples. ``short``: all
samples, but as few steps as have the compute of ``uniform``. ``oracle``: drawn with weight 1 /
number of frames. ``removed-true``: as ``short``, on one frame of each clip and the single images.
``hardest``: those with the largest loss, by a pass of its own over the whole batch, in evaluation
mode. On ``few`` images samples are left out from the first step to the last.
"""
ORDER = (
    *(("clips", 0), ("plain", 0), ("clips", 1)),
    *(("few", 0), ("few", 1), ("few", 2), ("plain", 1), ("few", 3), ("few", 4), ("clips", 2)),
)
SEEDS = 12
WINDOW = (2 / 90, 79 / 90)
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"epochs": 10, "batch": 512, "lr": 0.4, "prune": 0.4},
    "clips": {"epochs": 16, "batch": 256, "lr": 0.2, "prune": 0.4},
    "few": {"epochs": 64, "batch": 128, "lr": 0.1, "prune": 0.5},
}
SIZES = {"plain": 50_000, "few": 3000, "clips": 200, "frames": 40, "singles": 4000, "test": 10_000}
TINY = {"plain": 64, "few": 32, "clips": 2, "frames": 8, "singles": 16, "test": 32}


def trainings(config: GpuConfig) -> list[Item]:
    """Seed by seed, so that an early end leaves complete pairs; the longest of a seed first."""
    later = ((data, seed) for seed in range(SEEDS) for data in ("clips", "plain"))
    order = dict.fromkeys([*ORDER, *later])
    return [item for data, seed in order for item in _of_seed(config, data, seed)]


def _of_seed(config: GpuConfig, data: str, seed: int) -> list[Item]:
    sizes = TINY if config.tiny else SIZES
    recipe = {**RECIPES[data], **({"epochs": 1, "batch": 16} if config.tiny else {})}
    if config.epochs and data == "plain":
        recipe["epochs"] = config.epochs
    items = []
    for arm in ARMS[data]:
        settings = {
            **recipe,
            "data": data,
            "arm": arm,
            "seed": seed,
            "sizes": sizes,
            "memory": 4096,
            "window": WINDOW,
            "always": data == "few",
            "tiny": config.tiny,
            "compile": config.compile,
        }
        work = _thousands(settings)
        items.append(Item(f"train/{data}/{seed}/{arm}", "train", settings, work / PER_SECOND, work))
    return items


def _thousands(settings: dict[str, Any]) -> float:
    """Samples that go through forward and backward, and what costs as much, in thousands."""
    sizes, prune = settings["sizes"], settings["prune"]
    n = sizes["clips"] * sizes["frames"] + sizes["singles"] if settings["data"] == "clips" else sizes[settings["data"]]
    window = 1.0 if settings["always"] else WINDOW[1] - WINDOW[0]
    inside = 1 - 0.5 * prune
    parts = {
        "full": 1.0,
        "paper": inside,
        "uniform-inside": inside,
        "hardest": 1.35 - prune,
    }  # a forward is a third of a step
    return float(n * settings["epochs"] * parts.get(settings["arm"], 1 - prune * window) / 1000)
