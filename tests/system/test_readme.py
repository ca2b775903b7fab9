"""What README shows is what was measured, and it stays short."""

import json
import math
import statistics
from pathlib import Path

import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
NATURAL = ("uniform", "short", "small-batch", "removed", "full")
ROWS = {
    "log lines": ("logs", "mean_recall", NATURAL),
    "CopyBatchSampler": ("logs", "mean_recall", NATURAL),
    "as they come": ("stream", "mean_recall", ("uniform", None, None, None, "full")),
    "of 100 images": ("clips", "accuracy", NATURAL),
    "traffic signs": ("signs", "accuracy", NATURAL),
    "twice as many": ("gpu clips", "test_accuracy", ("uniform", "short", None, "removed-true", "full")),
    "50,000 images": ("gpu plain", "test_accuracy", ("uniform", "short", None, None, "full")),
}
"""By a part of the row's first cell: runs, metric, and the twins of its columns."""


def runs(name):
    """Metric of each arm and seed."""
    if name.startswith("gpu"):
        lines = (ROOT / "results/gpu-h100/lines.jsonl").read_text().splitlines()
        of = [line for line in map(json.loads, lines) if line["item"].startswith(f"train/{name[4:]}/")]
        return [{**line["settings"], **line["result"]} for line in of if line["status"] == "done"]
    found = [json.loads(line) for line in (ROOT / f"results/natural-cpu/{name}.jsonl").read_text().splitlines()]
    if name == "stream":  # of log lines in their order, with the default memory
        return [run | {"arm": run["arm"].removesuffix("-4096")} for run in found if run["set"] == "logs/1"]
    return found


def difference(found, metric, arm, twin):
    """An arm minus a twin in points, with its 95 % interval, and the number of pairs."""
    ours, theirs = ({run["seed"]: run[metric] for run in found if run["arm"] == one} for one in (arm, twin))
    points = [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    half = stats.t.ppf(0.975, len(points) - 1) * statistics.stdev(points) / math.sqrt(len(points))
    return f"{statistics.mean(points):+.1f} ± {half:.1f}", len(points)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_what_was_measured(name):
    file, metric, twins = ROWS[name]
    rows = [line for line in README.splitlines() if line.startswith("|") and name in line.split("|")[1]]
    (row,) = rows
    cells = [cell.strip() for cell in row.split("|")[3:-1]]
    found = runs(file)
    for cell, twin in zip(cells, twins, strict=True):
        if twin is None:
            assert not cell
            continue
        text, pairs = difference(found, metric, "hybrid" if name == "CopyBatchSampler" else "copies", twin)
        assert cell == text, twin
        assert f"(n = {pairs})" in row


def test_it_is_short():
    assert len(README.splitlines()) <= 90
