"""How much time does it save? Whole training steps of every variant, in turn, on one model and batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import pfb
from pfb.bench import results
from pfb.gate import Gate
from pfb.measure import Spread, clock_of, count_saved_bytes, interleaved_seconds
from pfb.selection import keep_count
from pfb.train.models import build
from pfb.wiring import output_of

VARIANTS: dict[str, dict[str, Any]] = {
    "reuse": {"shallow": "reuse"},
    "recompute": {"shallow": "recompute"},
    "recompute-half": {"shallow": "recompute", "scoring_scale": 0.5},
    "recompute-bf16": {"shallow": "recompute", "scoring_dtype": torch.bfloat16},
    "recompute-early": {"shallow": "recompute"},  # cut after the first block of the stage
    "recompute-early-half": {"shallow": "recompute", "scoring_scale": 0.5},
    "recompute-filled": {"shallow": "recompute"},  # as many samples that the kept ones are a full batch
    "uniform-reuse": {"shallow": "reuse", "importance": pfb.Uniform()},
    "uniform-recompute": {"shallow": "recompute", "importance": pfb.Uniform()},
}
"""What each variant passes to ``pfb.attach``; ``full`` and ``ideal`` (a step on the kept samples alone) come with them."""


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
    device = results.device_of(config.device)
    measured = []
    with Progress() as progress:
        for prune in config.prunes:
            task = progress.add_task(f"prune {prune:g}", total=config.warmup + config.repeats)
            measured.append(_measure(config, device, prune, lambda task=task: progress.advance(task)))  # type: ignore[misc]
    numbers = {**results.origin(asdict(config), device), "results": measured}
    return results.write(config.out, numbers, render(numbers), draw(numbers))


def render(numbers: dict[str, Any]) -> str:
    """Markdown table of the measured steps, ratios to the full step taken round by round."""
    lines = [
        "| prune | step | median ms | of a full step (quartiles) | time saved | samples/s | kept for backward, MiB | peak, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in numbers["results"]:
        for name, row in result["steps"].items():
            ratio, peak = row["ratio"], row["peak_bytes"]
            lines.append(
                f"| {result['prune']:g} | {name} | {1000 * row['seconds']['median']:.1f} | {ratio['median']:.3f} "
                f"({ratio['low']:.3f} to {ratio['high']:.3f}) | {1 - ratio['median']:.1%} | "
                f"{row['samples'] / row['seconds']['median']:.0f} | {row['saved_bytes'] / 2**20:.0f} | "
                f"{'' if peak is None else f'{peak / 2**20:.0f}'} |"
            )
        lines.append(
            f"| {result['prune']:g} | scoring alone | {1000 * result['scoring_seconds']['median']:.2f} | "
            f"{result['scoring_share']:.4f} | | | | |"
        )
    return "\n".join(lines) + "\n"


def draw(numbers: dict[str, Any]) -> Figure:
    """Time saved against the share pruned, with quartiles, and the line that nothing can pass but a faster small batch."""
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
    torch.manual_seed(0)
    wide = pfb.batch_size_for(config.batch_size, prune)
    image = torch.randn(wide, 3, config.image_size, config.image_size, device=device)
    if config.channels_last:
        image = image.to(memory_format=torch.channels_last)
    label = torch.randint(config.classes, (wide,), device=device)
    sizes = {"full": config.batch_size, "ideal": keep_count(config.batch_size, prune), "recompute-filled": wide}
    first = _Step(config, device, image[:2], label[:2], {"cut": config.cut})
    assert first.blocker is not None
    cut, early = first.blocker.cut, first_block(first.model, first.blocker.cut)
    steps: dict[str, _Step] = {}
    for name in ("full", "ideal", *config.variants):
        arguments = None if name in ("full", "ideal") else {"cut": cut, "prune": prune, **VARIANTS[name]}
        if "early" in name:
            if early is None:
                continue
            arguments = {**VARIANTS[name], "cut": early, "prune": prune}
        if name == "recompute-bf16" and config.precision == "bf16":
            continue
        n = sizes.get(name, config.batch_size)
        steps[name] = _Step(config, device, image[:n], label[:n], arguments)
    scoring = _Scoring(config, device, image[: config.batch_size], label[: config.batch_size], cut, prune)
    seconds = interleaved_seconds(
        {**{name: step.__call__ for name, step in steps.items()}, "scoring": scoring},
        device,
        config.repeats,
        config.warmup,
        clock_of(config.clock),
        on_round,
    )
    rows = {}
    for name, step in steps.items():
        rows[name] = {
            "samples": len(step.label),
            "cut": step.blocker.cut if step.blocker else None,
            "seconds": asdict(Spread.of(seconds[name])),
            "ratio": asdict(Spread.of_ratios(seconds[name], seconds["full"])),
            "saved_bytes": step.saved_bytes(),
            "peak_bytes": step.peak_bytes(),
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


def first_block(model: nn.Module, cut: str) -> str | None:
    """The first block of the stage that ends at the cut, if the stage is several blocks in a row."""
    stage = model.get_submodule(cut)
    return f"{cut}.0" if isinstance(stage, nn.Sequential) and len(stage) > 1 else None


class _Step:
    """One optimizer step of a fresh model, pruned if there are arguments for ``attach``."""

    def __init__(
        self,
        config: SpeedConfig,
        device: torch.device,
        image: Tensor,
        label: Tensor,
        attach: dict[str, Any] | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.model = build(config.model, config.classes, 3, config.image_size).to(device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.device, self.image, self.label = device, image, label
        self.blocker = None if attach is None else pfb.attach(self.model, **attach)
        if config.compile != "no":
            self.model.compile(dynamic=False, mode=None if config.compile == "default" else config.compile)
        self.compiled = config.compile != "no"
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")

    def forward(self) -> Tensor:
        with self.autocast:
            logits = self.model(self.image)
            return F.cross_entropy(logits, self.blocker.select(self.label) if self.blocker else self.label)

    def __call__(self) -> None:
        self.forward().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.blocker:
            self.blocker.step()

    def saved_bytes(self) -> int:
        """What autograd keeps for the backward pass; 0 for a compiled model, where it cannot be told."""
        if self.compiled:
            return 0
        with count_saved_bytes() as saved:
            self.forward()
        return saved.total

    def peak_bytes(self) -> int | None:
        """The most that a step allocates on top of what is there before it; ``None`` on a CPU."""
        if self.device.type != "cuda":
            return None
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self()
        return torch.cuda.max_memory_allocated(self.device) - before


class _Scoring:
    """What pfb adds to a step: pooling, density, selection, collecting, and moving the centers."""

    def __init__(
        self, config: SpeedConfig, device: torch.device, image: Tensor, label: Tensor, cut: str, prune: float
    ) -> None:
        step = _Step(config, device, image, label, {"cut": cut, "prune": prune})
        assert step.blocker is not None
        self.blocker, self.estimator = step.blocker, step.blocker.estimator
        self.gate: Gate = step.blocker._gate
        with step.autocast:
            self.output = output_of(step.model, step.model.get_submodule(cut), (image,), {})

    def __call__(self) -> None:
        self.gate.decide(self.output)
        self.estimator.apply()
        self.gate.end_step()
