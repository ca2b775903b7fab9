"""Everything that has to be measured on a device, in one run: speed, plans, memory, parts of a
step, scoring; and its goals.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from rich.console import Console

from pfb.lab import files
from pfb.lab.bench import memory, profile, speed
from pfb.lab.bench.setup import Device
from pfb.lab.errors import RunError
from studies import goals, predictions, scoring

IMAGENET = {"image_size": 224, "classes": 1000, "batch_size": 256}
MODELS = {"resnet50": "resnet50", "swin-t": "swin_t", "vit-s": "timm:vit_small_patch16_224"}
PRUNES = (0.3, 0.4, 0.5, 0.7)
TINY = {
    "model": "cifar-resnet8",
    "models": ("cifar-resnet8",),
    "cut": None,
    "prunes": (0.4,),
    "image_size": 8,
    "classes": 4,
    "batch_size": 8,
    "repeats": 1,
    "warmup": 1,
    "samples": (8,),
    "centers": (4,),
    "dims": (4,),
    "base": (8, 4, 4),
}


@dataclass(frozen=True)
class MeasureConfig:
    """Measure one device: every benchmark of speed and memory with the project's published
    settings, beside its goals.
    """

    out: Path = Path("runs/measure")
    """Folder of the results; what is there already is not measured again."""
    sizes: Literal["auto", "gpu", "cpu"] = "auto"
    """gpu: ImageNet's, in bf16. cpu: what one core can do in an hour. auto: by the device."""
    tiny: bool = False
    """Tiny models and few rounds, to try the study itself."""
    device: str | None = None
    """By default the accelerator if there is one, else the CPU."""


def run(config: MeasureConfig) -> Path:
    """Run what is missing, most important first, so that an early end leaves whole results; returns
    the table of goals.

    Raises:
        RunError: parts failed; the others are there all the same.
    """
    console, failed = Console(), []
    kind = Device(config.device).place.type if config.sizes == "auto" else config.sizes
    parts = list((_on_cpu if kind == "cpu" else _on_gpu)(config))
    place = config.out / "goals.md"
    for number, (name, measure) in enumerate(parts, start=1):
        file = config.out / f"{name}.json"
        if file.exists():
            print(f"{file} is there already")
            continue
        print(f"measuring {name}, part {number} of {len(parts)}")
        try:
            measure(file)
        except Exception:
            failed.append(name)
            console.print_exception()
        _free_memory()
        files.write_text(place, goals.render(config.out))
    console.print(goals.render(config.out), highlight=False, markup=False, soft_wrap=True)
    if failed:
        raise RunError(f"{', '.join(failed)} failed, see above; the same command tries again what is missing")
    return place


def _free_memory() -> None:
    """Let go of the models of a part that is done: they lie in cycles of hooks, and compiled ones
    in the compiler's caches.
    """
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


Part = tuple[str, Callable[[Path], Any]]


def _on_gpu(config: MeasureConfig) -> Iterator[Part]:
    plain, mixed = Device(config.device), Device(config.device, precision="bf16", channels_last=True)
    rounds = {"repeats": 20, "warmup": 5}
    for name, model in itertools.islice(MODELS.items(), 1 if config.tiny else None):
        settings = {"model": model, "on": mixed, **IMAGENET, **rounds}
        yield f"speed-{name}", _of(speed, config, prunes=PRUNES, **settings)
        yield f"speed-{name}-compiled", _compiled(config, "default", **settings)
        if name == "resnet50":
            yield f"speed-{name}-graphs", _compiled(config, "reduce-overhead", **settings)
            yield f"speed-{name}-stem", _of(speed, config, prunes=PRUNES, cut="maxpool", **settings)
        yield f"profile-{name}", _of(profile, config, **settings)
    yield "memory", _of(memory, config, models=tuple(MODELS.values()), on=mixed, **IMAGENET)
    planned = (*MODELS.values(), "convnext_tiny", "efficientnet_b0", "regnet_y_1_6gf")
    yield "plan", _of(predictions, config, models=planned, repeats=15, on=mixed, **IMAGENET)
    yield "scoring", _of(scoring, config, on=plain)
    yield "speed-resnet18-cifar", _of(speed, config, prunes=PRUNES, on=plain, **rounds)


def _on_cpu(config: MeasureConfig) -> Iterator[Part]:
    plain, one_core = Device(config.device), Device(config.device, threads=1, clock="cpu")
    settings = {"batch_size": 64, "repeats": 7, "warmup": 1, "on": one_core}
    yield "speed-resnet18-cifar", _of(speed, config, prunes=PRUNES, **settings)
    yield "speed-resnet18-cifar-compiled", _compiled(config, "default", **settings)
    yield "profile-resnet18-cifar", _of(profile, config, **settings)
    yield "plan", _of(predictions, config, on=one_core)
    yield "scoring", _of(scoring, config, on=one_core)
    yield "memory", _of(memory, config, models=("resnet18", "resnet50"), on=plain, batch_size=32)
    large = {"image_size": 224, "classes": 1000, "batch_size": 10, "repeats": 5, "warmup": 1}
    for name in ("swin-t", "vit-s"):
        yield f"speed-{name}", _of(speed, config, model=MODELS[name], prunes=(0.4,), on=one_core, **large)


def _compiled(config: MeasureConfig, mode: str, **settings: Any) -> Callable[[Path], Any]:
    """Speed of compiled steps; fewer of them, since each is compiled anew."""
    variants = ("recompute", "reuse", "recompute-half", "recompute-early-half", "uniform-recompute")
    return _of(speed, config, prunes=(0.4,), compile=mode, variants=variants[: 1 if config.tiny else None], **settings)


def _of(benchmark: Any, config: MeasureConfig, **settings: Any) -> Callable[[Path], Any]:
    """A benchmark with these settings, and where the study is tiny with tiny ones instead."""
    made = get_type_hints(benchmark.run)["config"](**settings)
    if config.tiny:
        known = {field.name for field in dataclasses.fields(made)}
        made = dataclasses.replace(made, **{name: value for name, value in TINY.items() if name in known})
    return lambda place: benchmark.run(dataclasses.replace(made, out=place))
