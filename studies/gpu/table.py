"""Tables of the results; needs no GPU."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

Line = dict[str, Any]
Row = list[str]

SAVED = {0.4: 38.0, 0.5: 48.0}  # %, by `copies`, of a step's time
BEHIND = 1.0  # points, of `copies` behind `ideal`
PAPER = {0.4: 33.2}  # %, by `paper`; what its authors state for ResNet-50
"""Goals, written before the first run. What fails one is marked."""

SAVED_TITLE = (
    "Time of a whole training step saved, in % of `full` (median of rounds in turns, quartiles in brackets). Goals: "
    f"`copies` at most {BEHIND:g} point behind `ideal`, and at least "
    + " and ".join(f"{SAVED[p]:g} % at {100 * p:g} % pruned" for p in SAVED)
    + f"; `paper`, of ResNet-50, at least {PAPER[0.4]:g} % at 40 % pruned."
)
MEMORY_TITLE = "Peak memory of a step in GiB, beyond weights, optimizer state and inputs."
LAUNCH_TITLE = (
    "What the host takes to launch a step, ms. Where it is near the step's time, the device waits for the host."
)

T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20)
"""Student's t, two-sided 95 %, by degrees of freedom from 1."""


def render(lines: list[Line]) -> str:
    """Markdown tables of the latest line of each item that was measured."""
    done = {line["item"]: line for line in lines if line["status"] == "done" and not line["item"].startswith("cache/")}
    if not done:
        return "Nothing was measured yet.\n"
    parts = [_origin(list(done.values()))]
    steps = [line for name, line in done.items() if name.startswith("steps/")]
    if steps:
        variants = _named(steps)
        ticked = [f"`{variant}`" for variant in variants]
        header = ["step", "pruned", "`full`, ms", *ticked[1:], "`copies` behind `ideal`, points"]
        parts.append(_table(SAVED_TITLE, header, [_saved(line, variants) for line in steps]))
        told = [line for line in steps if line["result"]["peak_bytes"]["full"] is not None]
        rows = [_memory(line, variants) for line in told]
        parts.append(_table(MEMORY_TITLE, ["step", "pruned", *ticked, "weights and state"], rows))
        rows = [[*_step(line), *_cells(line["result"]["launch_seconds"], variants, 1000)] for line in steps]
        parts.append(_table(LAUNCH_TITLE, ["step", "pruned", *ticked], rows))
    rows = [_judging(line, steps) for name, line in done.items() if name.startswith("judging/")]
    header = ["batch", "memory", "ms", "launch, ms", "of a full step"]
    parts.append(_table("Judging alone: a call of `pfb.BatchPruner`.", header, rows))
    if "waits" in done:
        rows = [[f"`{k}`", "no" if v is None else v] for k, v in done["waits"]["result"]["waits"].items()]
        parts.append(_table("Does the call make the host wait for the device?", ["call", "waits"], rows))
    for data in ("plain", "clips", "few"):
        runs = [line for name, line in done.items() if name.startswith(f"train/{data}/")]
        parts.append(_trainings(data, runs))
    failed = {
        line["item"]: line for line in lines if line["status"] in ("failed", "cut off") and line["item"] not in done
    }
    rows = [
        [name, line["status"], line.get("error", "").replace("\n", " ").replace("|", "/")]
        for name, line in failed.items()
    ]
    parts.append(_table("Not measured.", ["item", "why", "error"], rows))
    return "\n".join(part for part in parts if part)


def _origin(lines: list[Line]) -> str:
    names = ("device", "torch", "cuda", "cudnn", "commit")
    values = {name: sorted({str(line[name]) for line in lines}) for name in names}
    return ", ".join(f"{name} {' and '.join(found)}" for name, found in values.items()) + f"; {len(lines)} items.\n"


def _table(title: str, header: Row, rows: list[Row]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return f"{title}\n\n" + "\n".join(lines) + "\n"


def _named(steps: list[Line]) -> list[str]:
    """All variants, ``full`` first."""
    return list(dict.fromkeys(["full", *(name for line in steps for name in line["result"]["step_seconds"])]))


def _cells(values: dict[str, float], names: list[str], scale: float) -> Row:
    return [f"{scale * values[name]:.2f}" if name in values else "" for name in names]


# Steps


def _step(line: Line) -> Row:
    s = line["settings"]
    return [f"{s['model']}, {s['mode']}, {s['batch']} x {s['size']}", f"{100 * s['prune']:g} %"]


def _saved(line: Line, variants: list[str]) -> Row:
    times, prune = line["result"]["step_seconds"], line["settings"]["prune"]
    goals = {"copies": SAVED.get(prune), "paper": PAPER.get(prune) if line["settings"]["model"] == "resnet50" else None}
    cells = []
    for name in variants:
        if name == "full":
            continue
        if name not in times:
            cells.append("")
            continue
        saved = [100 * (1 - a / full) for a, full in zip(times[name], times["full"], strict=True)]
        goal = goals.get(name)
        cells.append(_spread(saved) + ("" if goal is None or statistics.median(saved) >= goal else " (missed)"))
    pairs = zip(times["copies"], times["ideal"], times["full"], strict=True)
    behind = [100 * (a - b) / full for a, b, full in pairs]
    missed = "" if statistics.median(behind) <= BEHIND else " (missed)"
    return [*_step(line), f"{1000 * statistics.median(times['full']):.2f}", *cells, _spread(behind) + missed]


def _spread(values: list[float]) -> str:
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def _memory(line: Line, variants: list[str]) -> Row:
    result = line["result"]
    return [*_step(line), *_cells(result["peak_bytes"], variants, 2**-30), f"{result['state_bytes'] / 2**30:.2f}"]


def _judging(line: Line, steps: list[Line]) -> Row:
    s, result = line["settings"], line["result"]
    seconds = statistics.median(result["call_seconds"])
    of = [
        x["result"]["step_seconds"]["full"]
        for x in steps
        if (x["settings"]["model"], x["settings"]["mode"]) == (s["model"], "eager")
    ]
    share = f"{100 * seconds / statistics.median(of[0]):.2f} % of {s['model']}" if of else ""
    numbers = f"{1000 * seconds:.2f}", f"{1000 * result['launch_seconds']:.2f}"
    what = "tokens" if s["model"] == "gpt2" else "images"
    return [f"{s['batch']} {what} of {s['size']}", f"{s['memory']:,}", *numbers, share]


# Trainings


def _trainings(data: str, runs: list[Line]) -> str:
    if not runs:
        return ""
    s = runs[0]["settings"]
    sizes = s["sizes"]
    what = {
        "plain": f"CIFAR-10, {sizes['plain']:,} images",
        "clips": f"{sizes['clips']} images as {sizes['frames']} frames each, beside {sizes['singles']:,} single ones",
        "few": f"{sizes['few']:,} images, samples left out from the first step to the last",
    }[data]
    title = (
        f"ResNet-18 on {what}: accuracy in % on {sizes['test']:,} test images after the last of {s['epochs']} epochs "
        f"in batches of {s['batch']}, {100 * s['prune']:g} % pruned. Differences are in pairs of equal seeds, with "
        "their 95 % interval."
    )
    header = [
        "arm",
        "seeds",
        "accuracy",
        "minus `uniform`",
        "minus `full`",
        "training accuracy",
        "samples trained on",
        "steps",
    ]
    header += ["frames kept", "singles kept"] if data == "clips" else []
    arms: dict[str, dict[int, Line]] = {}
    for run in runs:
        arms.setdefault(run["settings"]["arm"], {})[run["seed"]] = run
    return _table(title, header, [list(_arm(arm, arms, data)) for arm in arms])


def _arm(arm: str, arms: dict[str, dict[int, Line]], data: str) -> Iterator[str]:
    results = [line["result"] for line in arms[arm].values()]
    accuracies = [100 * result["test_accuracy"] for result in results]
    yield f"`{arm}`"
    yield str(len(results))
    yield f"{statistics.mean(accuracies):.2f}"
    for other in ("uniform", "full"):
        pairs = sorted(arms[arm].keys() & arms.get(other, {}).keys())
        one, two = ([100 * arms[a][seed]["result"]["test_accuracy"] for seed in pairs] for a in (arm, other))
        yield "" if arm == other or not pairs else _difference([a - b for a, b in zip(one, two, strict=True)])
    yield f"{100 * statistics.mean(result['train_accuracy'] for result in results):.1f}"
    settings = next(iter(arms[arm].values()))["settings"]
    all_samples = results[0]["full_steps"] * settings["batch"]
    yield f"{100 * statistics.mean(result['trained'] for result in results) / all_samples:.0f} %"
    yield f"{results[0]['steps']:,}"
    for name in ("frames_kept", "singles_kept") if data == "clips" else ():
        kept = [result[name] for result in results if result[name] is not None]
        yield f"{100 * statistics.mean(kept):.0f} %" if kept else ""


def _difference(values: list[float]) -> str:
    """Mean with its 95 % interval."""
    mean, n = statistics.mean(values), len(values)
    if n == 1:
        return f"{mean:+.2f}"
    t = T95[n - 2] if n - 2 < len(T95) else 2.0
    return f"{mean:+.2f} +- {t * statistics.stdev(values) / n**0.5:.2f}"
