"""Everything that has to be measured on a device, in one run: speed, plans, memory, parts of a
step, processes, scoring; and its goals.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from rich.console import Console

from pfb.lab import files
from pfb.lab.bench import checks, memory, profile, speed
from pfb.lab.bench.setup import Device
from pfb.lab.errors import RunError
from studies import goals, neighbours, predictions, scaling, scoring

IMAGENET = {"image_size": 224, "classes": 1000, "batch_size": 256}
GPT = {"model": "gpt2", "image_size": 1024, "classes": 50_257, "batch_size": 16}
"""GPT-2 (small), 124 M parameters, on sequences of 1,024 tokens."""
MODELS = {"resnet50": "resnet50", "swin-t": "swin_t", "vit-s": "timm:vit_small_patch16_224"}
QUICK = (
    *("timm:resnet10t", "mobilenet_v3_small", "shufflenet_v2_x0_5"),
    *("timm:convnext_atto", "timm:vit_tiny_patch16_224", "timm:regnety_002"),
)
"""Of which one core takes many steps in a minute, to be planned for."""
PRUNES = (0.3, 0.4, 0.5, 0.7)
COMPILED = ("sketch", "recompute")
"""Fewer steps where each is compiled anew."""
TINY = {
    "model": "cifar-resnet8",
    "models": ("cifar-resnet8",),
    "cut": None,
    "prunes": (0.4,),
    "image_size": 8,
    "classes": 4,
    "batch_size": 8,
    "memory": 64,
    "repeats": 1,
    "warmup": 1,
    "samples": (8,),
    "centers": (4,),
    "dims": (4,),
    "base": (8, 4, 4),
    "rows": (8, 64),
    "batches": (4,),
    "around": (64, 4),
}


@dataclass(frozen=True)
class MeasureConfig:
    """Measure one device: every benchmark of speed and memory with the project's published
    settings, beside its goals.
    """

    out: Path = Path("runs/measure")
    """Folder of the results; what is there already is not measured again."""
    sizes: Literal["auto", "gpu", "cpu"] = "auto"
    """gpu: ImageNet's, in bf16. cpu: what one core can do in an hour or two. auto: by the
    device.
    """
    parts: tuple[str, ...] = ()
    """Only these; by default all of them."""
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
    every = list((_on_cpu if kind == "cpu" else _on_gpu)(config))
    checks.known([name for name, _ in every], parts=config.parts or None)
    parts = [(name, measure) for name, measure in every if not config.parts or name in config.parts]
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
    rounds = {"repeats": 20, "warmup": 5, "on": mixed}
    networks: dict[str, dict[str, Any]] = {name: {"model": model, **IMAGENET} for name, model in MODELS.items()}
    networks["gpt2"] = GPT
    if config.tiny:
        networks = {"resnet50": networks["resnet50"]}  # all would be the same
    for name, sizes in networks.items():
        yield f"speed-{name}", _of(speed, config, prunes=PRUNES, **sizes, **rounds)
    for how, mode in {"compiled": "default", "graphs": "reduce-overhead"}.items():
        for name, sizes in networks.items():
            compiled = {"compile": mode, "variants": COMPILED, **sizes, **rounds}
            yield f"speed-{name}-{how}", _of(speed, config, prunes=(0.4, 0.5), **compiled)
    yield "neighbours", _of(neighbours, config, model="resnet50", **IMAGENET, repeats=20, on=mixed)
    yield "memory", _of(memory, config, models=tuple(MODELS.values()), on=mixed, **IMAGENET)
    for name, sizes in networks.items():
        yield f"profile-{name}", _of(profile, config, **sizes, **rounds)
    yield "scaling", _of(scaling, config, speeds=config.out)
    planned = (*MODELS.values(), "convnext_tiny", "efficientnet_b0", "regnet_y_1_6gf")
    yield "plan", _of(predictions, config, models=planned, repeats=15, on=mixed, **IMAGENET)
    yield "scoring", _of(scoring, config, on=plain)
    yield "speed-resnet18-cifar", _of(speed, config, prunes=PRUNES, repeats=20, warmup=5, on=plain)


def _on_cpu(config: MeasureConfig) -> Iterator[Part]:
    plain, one_core = Device(config.device), Device(config.device, threads=1, clock="cpu")
    settings = {"batch_size": 32, "repeats": 7, "warmup": 1, "on": one_core}
    yield "speed-resnet18-cifar", _of(speed, config, prunes=PRUNES, **settings)
    pairs = {"batch_size": 16, "repeats": 80, "warmup": 2, "on": one_core, "variants": ("sketch", "uniform-recompute")}
    yield "speed-resnet18-cifar-pairs", _of(speed, config, prunes=(0.4, 0.5), **pairs)  # steps that differ by a point
    small = {"image_size": 96, "classes": 1000, "batch_size": 16, "repeats": 20, "warmup": 1, "on": one_core}
    for name, model in MODELS.items():
        yield f"speed-{name}", _of(speed, config, model=model, prunes=(0.5,), **small)
    # Each step has weights, gradients and momentum of its own: 1.5 GB.
    short = {**GPT, "image_size": 64, "batch_size": 8, "variants": ("sketch", "uniform-recompute", "recompute")}
    yield "speed-gpt2", _of(speed, config, prunes=(0.5,), repeats=12, warmup=1, on=one_core, **short)
    tiny_net = {"model": "cifar-resnet8", "batch_size": 64, "variants": ("sketch", "uniform-recompute")}
    yield "speed-resnet8-cifar", _of(speed, config, prunes=(0.5,), repeats=40, warmup=2, on=one_core, **tiny_net)
    yield "neighbours", _of(neighbours, config, repeats=7, on=one_core)
    yield "scaling", _of(scaling, config, repeats=3)
    yield "profile-resnet18-cifar", _of(profile, config, **settings)
    yield "memory", _of(memory, config, models=("resnet18", "resnet50"), on=plain, batch_size=32)
    yield "scoring", _of(scoring, config, repeats=7, on=one_core)
    yield "plan", _of(predictions, config, models=QUICK, repeats=8, on=one_core)
    compiled = settings | {"compile": "default", "variants": COMPILED, "repeats": 5}
    yield "speed-resnet18-cifar-compiled", _of(speed, config, prunes=(0.5,), **compiled)


def _of(benchmark: Any, config: MeasureConfig, **settings: Any) -> Callable[[Path], Any]:
    """A benchmark with these settings, and where the study is tiny with tiny ones instead."""
    made = get_type_hints(benchmark.run)["config"](**settings)
    if config.tiny:
        known = {field.name for field in dataclasses.fields(made)}
        made = dataclasses.replace(made, **{name: value for name, value in TINY.items() if name in known})
    return lambda place: benchmark.run(dataclasses.replace(made, out=place))
