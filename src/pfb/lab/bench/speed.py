"""How much time does it save? Whole training steps of every variant, in turn, on one model and
batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pfb
from pfb.blocking.gate import Gate
from pfb.features.scoring_pass import output_of
from pfb.features.sketch import Sketch
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On, Step, full_memory
from pfb.lab.bench.variants import VARIANTS
from pfb.selection.nested import shrink_images
from pfb.selection.selection import keep_count, parts
from pfb.utils.timing import Spread, clock_of, interleaved_seconds

Numbers = dict[str, Any]


@dataclass(frozen=True)
class SpeedConfig:
    """Time full, pruned and ideal training steps in turn."""

    model: str = "resnet18"
    """As in pfb train; or gpt2, GPT-2 (small)."""
    batch_size: int = 128
    image_size: int = 32
    """Side of the images; of gpt2 the tokens of a sequence."""
    classes: int = 10
    """Outputs of the model; of gpt2 how many tokens there are (as published: 50257)."""
    cut: str | None = None
    """Layer after which samples are stopped; by default the first stage."""
    prunes: tuple[float, ...] = (0.4,)
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Beside the full step and the ideal one, which is taken on the kept samples alone."""
    memory: int = 65_536
    """Rows of the memory of which choice and update are timed alone; steps keep the default."""
    repeats: int = 10
    warmup: int = 2
    """Rounds not counted; more of them where it takes longer until all is compiled."""
    compile: Literal["no", "default", "reduce-overhead"] = "no"
    """torch.compile each step's model, with CUDA graphs for reduce-overhead."""
    on: On = field(default_factory=Device)
    out: Path = Path("runs/speed.json")
    """All numbers (.json) and, beside it, the table (.md) and the figure (.png)."""

    def __post_init__(self) -> None:
        checks.known(VARIANTS, variants=self.variants)
        checks.shares(prunes=self.prunes)
        checks.at_least(1, batch_size=self.batch_size, image_size=self.image_size, classes=self.classes)
        checks.at_least(1, repeats=self.repeats)
        checks.at_least(2, memory=self.memory)
        checks.at_least(0, warmup=self.warmup)


def run(config: SpeedConfig) -> Path:
    """Measure, write the numbers, the table and the figure; returns the table's path."""
    from rich.progress import Progress

    device = config.on.start()
    # Plain and pruned models of one class stand side by side here: their hooks tell them apart.
    side_by_side = torch._dynamo.config.patch(skip_nnmodule_hook_guards=False, cache_size_limit=64)
    measured = []
    with Progress() as progress, side_by_side:
        for prune in config.prunes:
            task = progress.add_task(f"prune {prune:g}", total=_warmup(config, prune) + config.repeats)
            measured.append(_measure(config, device, prune, lambda task=task: progress.advance(task)))  # type: ignore[misc]
    numbers = {**output.origin(asdict(config), device), "results": measured}
    return output.write(config.out, numbers, render, draw)


def render(numbers: Numbers) -> str:
    """Two Markdown tables: what each step saves at each share, and all that was measured of it."""
    return overview(numbers) + "\n" + details(numbers)


def overview(*results: Numbers) -> str:
    """Markdown table of a row per step and a column per model and share: time saved, with quartiles
    over the rounds.
    """
    measured = [(numbers["config"]["model"], result) for numbers in results for result in numbers["results"]]
    several = len(results) > 1
    header = [
        f"{model}, {result['prune']:.0%} pruned" if several else f"{result['prune']:.0%} pruned"
        for model, result in measured
    ]
    names = dict.fromkeys(name for _, result in measured for name in result["steps"] if name != "full")
    rows = [[name, *(_saved(result["steps"].get(name)) for _, result in measured)] for name in names]
    return output.table(["time of a step saved, % (quartiles)", *header], rows)


def details(numbers: Numbers) -> str:
    """Markdown table of the measured steps, ratios to the full step taken round by round."""
    header = ["prune", "step", "median ms", "of a full step (quartiles)", "time saved", "samples/s"]
    rows: list[list[object]] = []
    for result in numbers["results"]:
        prune = f"{result['prune']:g}"
        for name, row in result["steps"].items():
            ratio, seconds = row["ratio"], row["seconds"]["median"]
            quartiles = f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
            memory = [_mebibytes(row["saved_bytes"]), _mebibytes(row["peak_bytes"])]
            saved, rate = f"{1 - ratio['median']:.1%}", f"{row['samples'] / seconds:.0f}"
            rows.append([prune, name, f"{1000 * seconds:.1f}", quartiles, saved, rate, *memory])
        chosen = "choice and update alone" if "memory" in numbers["config"] else "scoring alone"  # by centers, once
        for name, title in (("sketch", "sketch alone"), ("scoring", chosen)):
            if f"{name}_seconds" in result:
                alone = [f"{1000 * result[f'{name}_seconds']['median']:.2f}", f"{result[f'{name}_share']:.4f}"]
                rows.append([prune, title, *alone, "", "", "", ""])
    return output.table([*header, "kept for backward, MiB", "peak, MiB"], rows)


def draw(numbers: Numbers) -> Figure:
    """Time saved against the share pruned, with quartiles, and the line that nothing can pass but a
    faster small batch.
    """
    figure, (axes,) = output.panels(7, 5)
    measured = numbers["results"]
    shares = [100 * result["prune"] for result in measured]
    top = 1.15 * max(shares)
    axes.plot([0, top], [0, top], color="black", linewidth=0.9, linestyle="--", label="limit: the share itself")
    drawn = [name for name in measured[0]["steps"] if name == "ideal" or (name in VARIANTS and VARIANTS[name].scores)]
    for style, name in enumerate(drawn):
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
    axes.legend(fontsize=8)
    return figure


def _saved(row: Numbers | None) -> str:
    if row is None:
        return ""
    median, low, high = (100 - 100 * row["ratio"][place] for place in ("median", "high", "low"))
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def _measure(config: SpeedConfig, device: torch.device, prune: float, on_round: Callable[[], None]) -> dict[str, Any]:
    kept = keep_count(config.batch_size, prune)
    variants = {name: VARIANTS[name] for name in config.variants}
    first = Step(config, config.model, {"cut": config.cut, "prune": prune})
    assert first.blocker is not None
    cut, (image, label) = first.blocker.cut, first.batch(config.batch_size)
    if any(variant.scale < 1 for variant in variants.values()) and not takes_half(first):
        variants = {name: variant for name, variant in variants.items() if variant.scale == 1}
    steps = {name: Step(config, config.model, None, config.compile) for name in ("full", "ideal")}
    for name, variant in variants.items():
        steps[name] = Step(config, config.model, variant.attach(cut, prune), config.compile)
    batches = {name: (image[:kept], label[:kept]) if name == "ideal" else (image, label) for name in steps}
    alone = _Alone(image, prune, config.memory)
    seconds = interleaved_seconds(
        {
            **{name: partial(step, *batches[name]) for name, step in steps.items()},
            "sketch alone": alone.sketch,
            "scoring alone": alone.choose_and_update,
        },
        device,
        config.repeats,
        _warmup(config, prune),
        clock_of(config.on.clock),
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
            "raw": output.rounded(seconds[name], 4),
        }
    result: dict[str, Any] = {"prune": prune, "kept": kept, "cut": cut, "steps": rows}
    for name in ("sketch", "scoring"):
        taken = seconds[f"{name} alone"]
        result[f"{name}_seconds"] = asdict(Spread.of(taken))
        result[f"{name}_share"] = Spread.of_ratios(taken, seconds["full"]).median
    return result


def takes_half(step: Step) -> bool:
    """Whether the model runs up to the cut on images of half the size, a ViT with fixed positions
    does not; says so where not.
    """
    assert step.blocker is not None
    try:
        half = shrink_images(step.batch(2)[0], 0.5)
        output_of(step.model, step.model.get_submodule(step.blocker.cut), (half,), {})
    except (AssertionError, RuntimeError, ValueError) as error:
        print(f"this model does not take half the size, so no variant scores at it: {error}")
        return False
    return True


def gathering(batch_size: int, prune: float) -> int:
    """Steps until the centers are there, before which no density is asked for."""
    return math.ceil(pfb.DensityEstimator().n_centers / keep_count(batch_size, prune))


def _warmup(config: SpeedConfig, prune: float) -> int:
    """Rounds that are not counted: of a compiled step all until the centers are gathered, which
    compiles a second graph.
    """
    if config.compile == "no":
        return config.warmup
    return max(config.warmup, gathering(config.batch_size, prune) + 2)


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


class _Alone:
    """What the defaults of ``pfb.attach`` add to an ideal step; the memory is full."""

    def __init__(self, x: Tensor, prune: float, size: int) -> None:
        self.x, reader = x, Sketch()
        self.sight = reader(x)
        self.memory = full_memory(size, self.sight.size(1), x.device)
        self.gate = Gate(pfb.InverseDensity(), self.memory, reader)
        self.gate.set_share(parts(prune))

    def sketch(self) -> None:
        """Of the batch."""
        self.gate.sight(self.x)

    def choose_and_update(self) -> None:
        """Isolation, the draw, and the memory's step."""
        self.gate.decide(self.x, self.sight)
        self.memory.apply()
        self.gate.end_step()
