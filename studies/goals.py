"""What was aimed at beside what was measured on one device, and by how much it was missed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pfb.lab.bench import output
from pfb.utils.timing import Spread

SAVED = {0.4: 0.38, 0.5: 0.48}
"""Least time of a step saved, by share pruned: set for GPUs, and shown for all devices."""
BEHIND = 1.0
"""Most that the step judged by a sketch may save less than the ideal one, in points."""
SCORING = 0.005
"""Most time that choice and update may take, as a part of a full step."""
SPARED = 0.9
"""Least part of the stopped samples' activations that a pruned step's memory lies below a full
step's.
"""
PREDICTED_WITHIN = 0.03
"""Largest error of ``pfb.plan``, as a part of a full step."""
ARCHITECTURES = 5
"""For at least so many architectures."""

STEPS = {
    "ideal": "ideal",
    "sketch": "`sketch` (the default)",
    "momentum": "`momentum`",
    "uniform-recompute": "`Uniform()`",
    "recompute": "`recompute`",
    "recompute-half": "... scored at half size",
    "reuse": "`reuse`",
}
"""Steps shown, with the titles of their columns."""
SPARING = ("sketch", "recompute")
"""Steps of which the memory is judged."""

Numbers = dict[str, Any]
Row = list[str]


def render(folder: Path) -> str:
    """Markdown tables from the results that the study ``measure`` left in a folder; what is not
    there yet is left out.
    """
    numbers: dict[str, Numbers] = {
        p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"), key=lambda p: p.stem)
    }
    speeds = {name.removeprefix("speed-"): n for name, n in numbers.items() if name.startswith("speed-")}
    header = ["time of a step saved, % (in brackets: missed by)", "pruned", "goal", *STEPS.values()]
    header.append(f"`sketch` behind ideal, points, in pairs (quartiles); goal: at most {BEHIND:g}")
    saved = [row for name, speed in speeds.items() for row in _saved(name, speed)]
    others = [_scoring(name, speed) for name, speed in speeds.items()]
    others += [row for name, speed in speeds.items() for row in _spared(name, speed)]
    if "plan" in numbers:
        others.append(_predicted(numbers["plan"]))
    if "memory" in numbers:
        others += _largest_batch(numbers["memory"])
    return output.table(header, saved) + "\n" + output.table(["", "goal", "measured"], others)


def behind(steps: Numbers, step: str) -> Spread | None:
    """How many points less of a full step one saves than the ideal one, round by round; ``None``
    where one of them was not measured.
    """
    if not {step, "ideal"} <= steps.keys():
        return None
    seconds = (steps[name]["raw"] for name in (step, "ideal", "full"))
    return Spread.of([100 * (a - b) / full for a, b, full in zip(*seconds, strict=True)])


def spared(result: Numbers, step: str) -> float | None:
    """How far a step's memory lies below the full step's, as a part of the activations of the
    samples it stops: of its peak, or where a device cannot tell that of what autograd keeps.
    ``None`` where it was not measured.
    """
    full, ideal, pruned = (result["steps"].get(name) for name in ("full", "ideal", step))
    if not (full and ideal and pruned) or full["saved_bytes"] is None or full["samples"] == ideal["samples"]:
        return None
    stopped = full["saved_bytes"] - ideal["saved_bytes"]  # weights are in both
    what = "saved_bytes" if full["peak_bytes"] is None else "peak_bytes"
    return float((full[what] - pruned[what]) / stopped)


def _saved(name: str, speed: Numbers) -> Iterator[Row]:
    for result in speed["results"]:
        goal, steps = SAVED.get(result["prune"]), result["steps"]
        saved = {step: 1 - row["ratio"]["median"] for step, row in steps.items()}
        cells = [_or_missed_by(saved.get(step), None if step == "ideal" else goal) for step in STEPS]
        goal_cell = "" if goal is None else f"{100 * goal:g}"
        yield [name, f"{100 * result['prune']:g}", goal_cell, *cells, _behind(behind(steps, "sketch"))]


def _behind(points: Spread | None) -> str:
    if points is None:
        return ""
    text = f"{points.median:+.1f} ({points.low:+.1f} to {points.high:+.1f})"
    return text + _missed(points.median <= BEHIND)


def _spared(name: str, speed: Numbers) -> Iterator[Row]:
    for step in SPARING:
        found = [part for result in speed["results"] if (part := spared(result, step)) is not None]
        if found:
            full = speed["results"][0]["steps"]["full"]
            what = "kept for backward" if full["peak_bytes"] is None else "peak memory"
            title = f"{what} of `{step}` below full's, of the stopped samples' activations, {name}"
            yield [title, f"at least {SPARED:.0%}", f"{min(found):.0%}{_missed(min(found) >= SPARED)}"]


def _or_missed_by(saved: float | None, goal: float | None) -> str:
    if saved is None:
        return ""
    return f"{100 * saved:.1f}" + (f" (-{100 * (goal - saved):.1f})" if goal is not None and saved < goal else "")


def _scoring(name: str, speed: Numbers) -> Row:
    share = max(result["scoring_share"] for result in speed["results"])
    rows = speed["config"].get("memory")
    of = "centers" if rows is None else f"a memory of {rows:,}"  # results of older versions timed centers
    title = f"choice and update with {of}, of a full step of {name}"
    return [title, f"below {SCORING:.1%}", f"{share:.2%}{_missed(share < SCORING)}"]


def _predicted(plan: Numbers) -> Row:
    errors = {
        row["model"]: max(abs(measured["median"] - row["predicted"][w]) for w, measured in row["measured"].items())
        for row in plan["rows"]
    }
    within = sum(error <= PREDICTED_WITHIN for error in errors.values())
    title = f"architectures whose savings are predicted within {100 * PREDICTED_WITHIN:g} points, every wiring"
    found = f"{within} of {len(errors)}, worst error {100 * max(errors.values()):.1f}"
    return [title, f"at least {ARCHITECTURES}", found + _missed(within >= ARCHITECTURES)]


def _largest_batch(memory: Numbers) -> Iterator[Row]:
    batches = {(row["model"], row["step"]): row["largest_tried"] or row["largest_estimated"] for row in memory["rows"]}
    for model in memory["config"]["models"]:
        full, *pruned = (batches[model, step] for step in ("full", "reuse", "recompute"))
        reuse, recompute = (batch / full for batch in pruned)
        found = f"`reuse` {reuse:.2f}, `recompute` {recompute:.2f}{_missed(recompute > 1)}"
        yield [f"largest batch of {model}, of that of a full step", "`recompute` above 1", found]


def _missed(met: bool) -> str:
    return "" if met else " (missed)"
