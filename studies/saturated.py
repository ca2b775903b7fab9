"""The paper's rule beside other methods where full data are learned by heart: a table of runs of
``pfb train`` that were made before its own commands for such comparisons went.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfb.lab import files
from pfb.lab.bench import output
from studies.grid import read
from studies.verdicts import difference, paired

Run = dict[str, Any]
METHODS = ("full", "short", "uniform", "paper", "release", "infobatch", "orderdp", "selective-backprop")


@dataclass(frozen=True)
class SaturatedConfig:
    """Make the table of the runs anew. ``docs/paper.md`` has the command that trains one."""

    runs: Path = Path("results/saturated-cpu/runs.jsonl")
    """The runs, one a line; the table is written beside them."""


def run(config: SaturatedConfig) -> Path:
    """Write the table; returns its path."""
    table = config.runs.with_name("table.md")
    files.write_text(table, render(read(config.runs)))
    return table


def render(runs: list[Run]) -> str:
    """Markdown table: means and deviations over seeds, differences in pairs of them."""
    whole = max(run["trained_samples"] for run in runs if run["method"] == "full")
    rows = []
    for prune in sorted({run["prune"] for run in runs}):
        uniform = _accuracies(runs, "uniform", prune)
        for method in METHODS:
            mine = [run for run in runs if run["method"] == method and run["prune"] == prune]
            if not mine:
                continue
            own = _accuracies(runs, method, prune)
            rows.append(
                [
                    f"`{method}`",
                    f"{prune:.0%}",
                    len(mine),
                    f"{statistics.mean(own.values()):.2f} ({statistics.stdev(own.values()):.2f})",
                    "" if method == "full" else difference(paired(own, _accuracies(runs, "full", 0.0))),
                    "" if method in ("full", "uniform") else difference(paired(own, uniform)),
                    f"{100 * statistics.mean(run['train_accuracy'] for run in mine):.0f}",
                    f"{statistics.mean(run['trained_samples'] / whole for run in mine):.0%}",
                ]
            )
    header = ["method", "pruned", "n", "test accuracy, %", "minus `full`", "minus `uniform`"]
    return output.table([*header, "training accuracy, %", "trained on, of `full`"], rows)


def _accuracies(runs: list[Run], method: str, prune: float) -> dict[int, float]:
    here = [run for run in runs if run["method"] == method and run["prune"] == prune]
    return {run["config"]["seed"]: 100 * run["test_accuracy"] for run in here}
