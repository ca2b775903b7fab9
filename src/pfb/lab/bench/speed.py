"""How much time does it save? Whole training steps of every variant, in turn, on one model and
batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pfb
from pfb.forward import output_of
from pfb.gate import gate_for
from pfb.lab.bench import output
from pfb.lab.bench.step import Step, first_block
from pfb.measure import Spread, clock_of, interleaved_seconds
from pfb.selection import keep_count, parts
from pfb.tree import shrink_images

VARIANTS: dict[str, dict[str, Any]] = {
    "reuse": {"shallow": "reuse"},
    "recompute": {"shallow": "recompute"},
    "recompute-half": {"shallow": pfb.Recompute(scale=0.5)},
    "recompute-bf16": {"shallow": pfb.Recompute(dtype=torch.bfloat16)},
    "recompute-early": {"shallow": "recompute"},  # cut after the first block of the stage
    "recompute-early-half": {"shallow": pfb.Recompute(scale=0.5)},
    "recompute-filled": {"shallow": "recompute"},  # as many samples that the kept ones are a full batch
    "uniform-reuse": {"shallow": "reuse", "importance": pfb.Uniform()},
    "uniform-recompute": {"shallow": "recompute", "importance": pfb.Uniform()},
}
"""What each variant passes to ``pfb.attach``; ``full`` and ``ideal`` (a step on the kept samples
alone) come with them.
"""


@dataclass(frozen=True)
class SpeedConfig:
    """Time full, pruned and ideal training steps in turn."""

    model: str = "resnet18"
    batch_size: int = 128
    image_size: int = 32
    classes: int = 10
    cut: str | None = None
    """Layer after which samples are stopped; by default the first stage."""
    prunes: tuple[float, ...] = (0.4,)
    variants: tuple[str, ...] = tuple(VARIANTS)
    repeats: int = 10
    warmup: int = 2
    """Rounds not counted; more of them where it takes longer until all is compiled."""
    precision: Literal["no", "bf16"] = "no"
    channels_last: bool = False
    compile: Literal["no", "default", "reduce-overhead"] = "no"
    """torch.compile each step's model, with CUDA graphs for reduce-overhead."""
    device: str | None = None
    """By default the accelerator if there is one, else the CPU."""
    threads: int | None = None
    """CPU threads; 1 with --clock cpu gives the steadiest figures on a busy machine."""
    clock: Literal["wall", "cpu"] = "wall"
    """Elapsed seconds, or CPU seconds of this process."""
    out: Path = Path("runs/speed.json")
    """All numbers (.json) and, beside it, the table (.md) and the figure (.png)."""


def run(config: SpeedConfig) -> Path:
    """Measure, write the numbers, the table and the figure; returns the table's path."""
    from rich.progress import Progress

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.compile != "no":  # plain and pruned models of one class stand side by side here
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch._dynamo.config.recompile_limit = 64
    device = output.device_of(config.device)
    measured = []
    with Progress() as progress:
        for prune in config.prunes:
            task = progress.add_task(f"prune {prune:g}", total=_warmup(config, prune) + config.repeats)
            measured.append(_measure(config, device, prune, lambda task=task: progress.advance(task)))  # type: ignore[misc]
    numbers = {**output.origin(asdict(config), device), "results": measured}
    return output.write(config.out, numbers, render(numbers), draw(numbers))


def render(numbers: dict[str, Any]) -> str:
    """Two Markdown tables: what each step saves at each share, and all that was measured of it."""
    return overview(numbers) + "\n" + details(numbers)


def overview(numbers: dict[str, Any]) -> str:
    """Markdown table of a row per step and a column per share: time saved, with quartiles over the
    rounds.
    """
    measured = numbers["results"]
    lines = [
        "| time of a step saved, % (quartiles) |" + "".join(f" {r['prune']:.0%} pruned |" for r in measured),
        "|---" * (1 + len(measured)) + "|",
    ]
    for name in (step for step in measured[0]["steps"] if step != "full"):
        ratios = [result["steps"][name]["ratio"] for result in measured]
        cells = [
            f" {100 - 100 * r['median']:.1f} ({100 - 100 * r['high']:.1f} to {100 - 100 * r['low']:.1f}) |"
            for r in ratios
        ]
        lines.append(f"| {name} |" + "".join(cells))
    return "\n".join(lines) + "\n"


def details(numbers: dict[str, Any]) -> str:
    """Markdown table of the measured steps, ratios to the full step taken round by round."""
    lines = [
        "| prune | step | median ms | of a full step (quartiles) | time saved | samples/s | kept for backward, MiB | peak, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in numbers["results"]:
        for name, row in result["steps"].items():
            ratio = row["ratio"]
            lines.append(
                f"| {result['prune']:g} | {name} | {1000 * row['seconds']['median']:.1f} | {ratio['median']:.3f} "
                f"({ratio['low']:.3f} to {ratio['high']:.3f}) | {1 - ratio['median']:.1%} | "
                f"{row['samples'] / row['seconds']['median']:.0f} | {_mebibytes(row['saved_bytes'])} | "
                f"{_mebibytes(row['peak_bytes'])} |"
            )
        lines.append(
            f"| {result['prune']:g} | scoring alone | {1000 * result['scoring_seconds']['median']:.2f} | "
            f"{result['scoring_share']:.4f} | | | | |"
        )
    return "\n".join(lines) + "\n"


def draw(numbers: dict[str, Any]) -> Figure:
    """Time saved against the share pruned, with quartiles, and the line that nothing can pass but a
    faster small batch.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    measured = numbers["results"]
    shares = [100 * result["prune"] for result in measured]
    top = 1.15 * max(shares)
    axes.plot([0, top], [0, top], color="black", linewidth=0.9, linestyle="--", label="limit: the share itself")
    names = [
        n for n in measured[0]["steps"] if n != "full" and not n.startswith("uniform") and not n.endswith("filled")
    ]
    for style, name in enumerate(names):
        rows = [result["steps"][name]["ratio"] for result in measured]
        saved = [100 * (1 - row["median"]) for row in rows]
        spread = [
            [100 * (row["high"] - row["median"]) for row in rows],
            [100 * (row["median"] - row["low"]) for row in rows],
        ]
        axes.errorbar(shares, saved, spread, label=name, color=f"C{style}", marker="os^Dv<>"[style % 7], capsize=3)
    config = numbers["config"]
    axes.set(xlabel="samples pruned, %", ylabel="time of a training step saved, %")
    axes.set_title(
        f"{config['model']}, {config['image_size']} px, batch {config['batch_size']}\n{numbers['device']}", fontsize=10
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    return figure


def _measure(config: SpeedConfig, device: torch.device, prune: float, on_round: Callable[[], None]) -> dict[str, Any]:
    wide = pfb.batch_size_for(config.batch_size, prune)
    sizes = {"ideal": keep_count(config.batch_size, prune), "recompute-filled": wide}
    first = Step(config, device, config.model, {"cut": config.cut, "prune": prune})
    assert first.blocker is not None
    cut, early = first.blocker.cut, first_block(first.model, first.blocker.cut)
    image, label = first.batch(wide)
    steps: dict[str, Step] = {}
    batches: dict[str, tuple[Tensor, Tensor]] = {}
    for name in ("full", "ideal", *config.variants):
        at = early if "early" in name else cut
        if at is None or (name == "recompute-bf16" and config.precision == "bf16"):
            continue
        if name.endswith("half") and not _takes_half(first, image[:2]):
            continue
        arguments = {"cut": at, "prune": prune, **VARIANTS[name]} if name in VARIANTS else None
        n = sizes.get(name, config.batch_size)
        steps[name] = Step(config, device, config.model, arguments, config.compile)
        batches[name] = image[:n], label[:n]
    seconds = interleaved_seconds(
        {
            **{name: partial(step, *batches[name]) for name, step in steps.items()},
            "scoring": _Scoring(first, image[: config.batch_size]),
        },
        device,
        config.repeats,
        _warmup(config, prune),
        clock_of(config.clock),
        on_round,
    )
    rows = {}
    for name, step in steps.items():
        rows[name] = {
            "samples": len(batches[name][1]),
            "cut": step.blocker.cut if step.blocker else None,
            "seconds": asdict(Spread.of(seconds[name])),
            "ratio": asdict(Spread.of_ratios(seconds[name], seconds["full"])),
            # Of a compiled model it cannot be told.
            "saved_bytes": step.saved_bytes(*batches[name]) if config.compile == "no" else None,
            "peak_bytes": _peak_bytes(step, *batches[name]),
            "raw": seconds[name],
        }
    return {
        "prune": prune,
        "kept": keep_count(config.batch_size, prune),
        "cut": cut,
        "steps": rows,
        "scoring_seconds": asdict(Spread.of(seconds["scoring"])),
        "scoring_share": Spread.of_ratios(seconds["scoring"], seconds["full"]).median,
    }


def _takes_half(step: Step, image: Tensor) -> bool:
    """Whether the model runs on images of half the size; a ViT with fixed positions does not."""
    assert step.blocker is not None
    try:
        half = shrink_images(image, 0.5)
        output_of(step.model, step.model.get_submodule(step.blocker.cut), (half,), {})
    except (AssertionError, RuntimeError, ValueError) as error:
        print(
            f"{step.setup.image_size // 2} pixels are too few for this model, so no variant scores at half size: {error}"
        )
        return False
    return True


def _warmup(config: SpeedConfig, prune: float) -> int:
    """Rounds that are not counted: of a compiled step all until the centers are gathered, which
    compiles a second graph.
    """
    if config.compile == "no":
        return config.warmup
    gathering = math.ceil(pfb.DensityEstimator().n_centers / keep_count(config.batch_size, prune))
    return max(config.warmup, gathering + 2)


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f}"


def _peak_bytes(step: Step, image: Tensor, label: Tensor) -> int | None:
    """The most that a step allocates on top of what is there before it; ``None`` on a CPU."""
    if step.device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(step.device)
    torch.cuda.reset_peak_memory_stats(step.device)
    step(image, label)
    return torch.cuda.max_memory_allocated(step.device) - before


class _Scoring:
    """What pfb adds to a step: pooling, density, selection, collecting, and moving the centers."""

    def __init__(self, step: Step, image: Tensor) -> None:
        assert step.blocker is not None
        blocker, share = step.blocker, parts(step.blocker.prune)
        self.estimator = blocker.estimator
        self.gate = gate_for(step.model, blocker.cut, pfb.RareFirst(), blocker.estimator, share)
        with step.autocast:
            self.output = output_of(step.model, step.model.get_submodule(step.blocker.cut), (image,), {})

    def __call__(self) -> None:
        self.gate.decide(self.output)
        self.estimator.apply()
        self.gate.end_step()
