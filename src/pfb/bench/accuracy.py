"""Does it keep the accuracy? A grid of methods, shares and seeds on one recipe, compared in pairs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfb.train import checkpoint
from pfb.train.config import TrainConfig
from pfb.train.errors import RunError

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "uniform-reuse": {"method": "uniform", "shallow": "reuse"},
    "uniform-recompute": {"method": "uniform", "shallow": "recompute"},
    "pfb-reuse": {"method": "pfb", "shallow": "reuse"},
    "pfb-recompute": {"method": "pfb", "shallow": "recompute", "batchnorm": "running"},
    "pfb-recompute-batch": {"method": "pfb", "shallow": "recompute", "batchnorm": "batch"},
}
"""What each name changes in the common recipe."""


@dataclass(frozen=True)
class AccuracyConfig:
    """Train every method with every seed on one recipe and tabulate last-epoch accuracy, with differences in pairs."""

    recipe: TrainConfig = field(default_factory=TrainConfig)
    methods: tuple[str, ...] = tuple(METHODS)
    prunes: tuple[float, ...] = (0.4,)
    seeds: tuple[int, ...] = (0, 1, 2)
    root: Path = Path("runs/accuracy")
    """Folder of the grid; finished cells in it are skipped, an interrupted one goes on where it was."""
    table: Path | None = None
    """Where the table (.md) and all numbers (.json beside it) go; by default results.md in the root."""

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise RunError(f"--methods knows {', '.join(METHODS)} (got {method!r})")


def run(config: AccuracyConfig) -> Path:
    """Run or continue the grid and write the table; returns its path."""
    from pfb.train.loop import console, train

    cells = _cells(config)
    for number, (name, recipe) in enumerate(cells, start=1):
        if (recipe.out / "summary.json").exists():
            continue
        console.rule(f"cell {number} of {len(cells)}: {name}")
        train(recipe, resume=bool(checkpoint.finished(recipe.out)))
    results = [{"cell": name, **json.loads((recipe.out / "summary.json").read_text())} for name, recipe in cells]
    table = config.table or config.root / "results.md"
    checkpoint.write_text(table.with_suffix(".json"), json.dumps({"commit": commit(), "runs": results}, indent=1))
    checkpoint.write_text(table, render(results))
    console.print(table.read_text(), highlight=False, markup=False)
    return table


def render(results: list[dict[str, Any]]) -> str:
    """Markdown table: mean and standard deviation over seeds, paired differences with their 95 % interval."""
    by_method: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for result in results:
        method, prune = result["cell"].split("/")[0], result["config"]["prune"]
        by_method.setdefault((method, 0.0 if method == "full" else prune), {})[result["config"]["seed"]] = result
    full = next((runs for (method, _), runs in by_method.items() if method == "full"), {})
    lines = [
        "| method | prune | n | test accuracy % | minus full | minus uniform, same wiring | deep samples saved | time saved |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (method, prune), runs in by_method.items():
        values = [100 * r["test_accuracy"] for r in runs.values()]
        wiring = "recompute" if "recompute" in method else "reuse"
        uniform = by_method.get((f"uniform-{wiring}", prune), {}) if method.startswith("pfb") else {}
        pruned = [100 * (1 - r["deep_samples"] / r["samples"]) for r in runs.values()]
        saved = [100 * r["time_saved"] for r in runs.values()]
        lines.append(
            f"| {method} | {prune:g} | {len(values)} | {_mean_std(values)} | "
            f"{_paired(runs, full) if method != 'full' else ''} | {_paired(runs, uniform)} | "
            f"{statistics.mean(pruned):.1f} % | {statistics.mean(saved):.1f} % |"
        )
    return "\n".join(lines) + "\n"


def _cells(config: AccuracyConfig) -> list[tuple[str, TrainConfig]]:
    cells = []
    for seed, method, prune in itertools.product(config.seeds, config.methods, config.prunes):
        if method == "full" and prune != config.prunes[0]:
            continue
        name = f"{method}/{'full' if method == 'full' else f'prune{prune:g}'}/seed{seed}"
        recipe = dataclasses.replace(
            config.recipe, **METHODS[method], prune=prune, seed=seed, out=config.root / name.replace("/", "-")
        )
        cells.append((name, recipe))
    return cells


def _mean_std(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


def _paired(runs: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]) -> str:
    """Mean difference over the seeds both have, with the half-width of Student's 95 % interval."""
    seeds = sorted(runs.keys() & base.keys())
    if len(seeds) < 2:
        return ""
    from scipy.stats import t

    differences = [100 * (runs[s]["test_accuracy"] - base[s]["test_accuracy"]) for s in seeds]
    half = t.ppf(0.975, len(seeds) - 1) * statistics.stdev(differences) / math.sqrt(len(seeds))
    return f"{statistics.mean(differences):+.2f} ± {half:.2f}"


def commit() -> str:
    """The commit the code was at, marked if files were changed; empty outside a checkout."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return asked.stdout.strip()
