"""What was aimed at beside what was measured on one device, and by how much it was missed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pfb.lab.bench import output

SAVED = {0.4: 0.38, 0.5: 0.48}
"""Least time of a step saved, by share pruned."""
TRANSFORMERS = {"swin_t", "timm:vit_small_patch16_224"}
TRANSFORMERS_SAVED = 0.95
"""The same for transformers on a GPU, as a part of the share pruned; on a CPU none was set."""
SCORING = {"gpu": 0.005, "cpu": 0.01}
"""Most time that density, choice and update may take, as a part of a full step."""
PREDICTED_WITHIN = 0.03
"""Largest error of ``pfb.plan``, as a part of a full step."""
ARCHITECTURES = 5
"""For at least so many architectures."""

STEPS = {
    "ideal": "ideal",
    "reuse": "`reuse`",
    "recompute": "`recompute`",
    "recompute-bf16": "... scored in bf16",
    "recompute-early": "... cut one block earlier",
    "recompute-half": "... scored at half size",
    "uniform-recompute": "... `Uniform()`",
}
"""Steps shown, with the titles of their columns."""

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
    saved = [row for name, speed in speeds.items() for row in _saved(name, speed)]
    others = [_scoring(name, speed) for name, speed in speeds.items()]
    if "plan" in numbers:
        others.append(_predicted(numbers["plan"]))
    if "memory" in numbers:
        others += _largest_batch(numbers["memory"])
    return output.table(header, saved) + "\n" + output.table(["", "goal", "measured"], others)


def saved_goal(model: str, prune: float, device_type: str) -> float | None:
    """The time to be saved; ``None`` where none was set."""
    if model in TRANSFORMERS:
        return None if device_type == "cpu" else TRANSFORMERS_SAVED * prune
    return SAVED.get(prune)


def _saved(name: str, speed: Numbers) -> Iterator[Row]:
    for result in speed["results"]:
        goal = saved_goal(speed["config"]["model"], result["prune"], speed["device_type"])
        if goal is None:
            continue
        saved = {step: 1 - row["ratio"]["median"] for step, row in result["steps"].items()}
        cells = [_or_missed_by(saved.get(step), None if step == "ideal" else goal) for step in STEPS]
        yield [name, f"{100 * result['prune']:g}", f"{100 * goal:g}", *cells]


def _or_missed_by(saved: float | None, goal: float | None) -> str:
    if saved is None:
        return ""
    return f"{100 * saved:.1f}" + (f" (-{100 * (goal - saved):.1f})" if goal is not None and saved < goal else "")


def _scoring(name: str, speed: Numbers) -> Row:
    goal = SCORING["cpu" if speed["device_type"] == "cpu" else "gpu"]
    share = max(result["scoring_share"] for result in speed["results"])
    title = f"density, choice and update, of a full step of {name}"
    return [title, f"below {goal:.1%}", f"{share:.2%}{_missed(share < goal)}"]


def _predicted(plan: Numbers) -> Row:
    errors = {
        row["model"]: max(abs(measured["median"] - row["predicted"][w]) for w, measured in row["measured"].items())
        for row in plan["rows"]
    }
    within = sum(error <= PREDICTED_WITHIN for error in errors.values())
    title = f"architectures whose savings are predicted within {100 * PREDICTED_WITHIN:g} points, both wirings"
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
