"""Everything that has to be measured on a device, in one run: speed, plans, memory, parts of a step, scoring."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfb.bench import memory, plan, profile, scoring, speed

IMAGENET = {"image_size": 224, "classes": 1000, "batch_size": 256, "precision": "bf16", "channels_last": True}
CIFAR = {"image_size": 32, "classes": 10, "batch_size": 128}
SMALL = {"image_size": 32, "classes": 4, "batch_size": 8, "repeats": 1, "warmup": 1}
MODELS = {"resnet50": "resnet50", "swin-t": "swin_t", "vit-s": "timm:vit_small_patch16_224"}


@dataclass(frozen=True)
class SuiteConfig:
    """Measure one device: every benchmark of speed and memory with the project's published settings."""

    out: Path = Path("runs/suite")
    """Folder of the results; what is there already is not measured again."""
    tiny: bool = False
    """Tiny models and few rounds, to try the suite itself."""
    device: str | None = None
    """By default the accelerator if there is one, else the CPU."""


def run(config: SuiteConfig) -> Path:
    """Run what is missing, most important first, so that an early end leaves whole results."""
    for name, measure in _parts(config):
        place = config.out / f"{name}.json"
        if place.exists():
            print(f"{place} is there already")
            continue
        print(f"measuring {name}")
        measure(place)
    return config.out


def _parts(config: SuiteConfig) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    def at(**settings: Any) -> dict[str, Any]:
        return {"device": config.device, **(settings | SMALL if config.tiny else settings)}

    models = {"resnet8": "resnet8"} if config.tiny else MODELS
    prunes = (0.3, 0.4, 0.5, 0.7)
    for name, model in models.items():
        settings = at(**IMAGENET, repeats=20, warmup=5)
        yield f"speed-{name}", _speed(model=model, prunes=prunes, **settings)
        yield f"speed-{name}-compiled", _speed(model=model, prunes=(0.4,), compile="default", **settings)
        if name == "resnet50":
            graphs = {**settings, "compile": "reduce-overhead"}
            yield f"speed-{name}-graphs", _speed(model=model, prunes=(0.4,), **graphs)
            yield f"speed-{name}-stem", _speed(model=model, prunes=prunes, cut="maxpool", **settings)
        yield f"profile-{name}", _of(profile, profile.ProfileConfig(model=model, **settings))
    without_rounds = {k: v for k, v in at(**IMAGENET).items() if k not in ("repeats", "warmup")}
    yield "memory", _of(memory, memory.MemoryConfig(models=tuple(models.values()), **without_rounds))
    with_repeats = {k: v for k, v in at(**IMAGENET, repeats=15).items() if k != "warmup"}
    planned = ("resnet8",) if config.tiny else (*MODELS.values(), "convnext_tiny", "efficientnet_b0", "regnet_y_1_6gf")
    yield "plan", _of(plan, plan.PlanConfig(models=planned, **with_repeats))
    sizes: dict[str, Any] = (
        {"samples": (8,), "centers": (4,), "dims": (4,), "base": (8, 4, 4), "repeats": 1} if config.tiny else {}
    )
    yield "scoring", _of(scoring, scoring.ScoringConfig(device=config.device, **sizes))
    small_model = "resnet8" if config.tiny else "resnet18"
    yield "speed-resnet18-cifar", _speed(model=small_model, prunes=prunes, **at(**CIFAR, repeats=20, warmup=5))


def _speed(**settings: Any) -> Callable[[Path], Any]:
    return _of(speed, speed.SpeedConfig(**settings))


def _of(benchmark: Any, config: Any) -> Callable[[Path], Any]:
    return lambda place: benchmark.run(dataclasses.replace(config, out=place))
