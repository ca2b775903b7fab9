"""What a grid of runs says: a table of paired differences, and the figures beside it."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import t

from pfb.lab import files

Run = dict[str, Any]
Group = dict[int, Run]
"""Runs that differ in the seed alone, by seed."""


def write(runs: list[Run], folder: Path, against: str | None = None) -> Path:
    """Write ``runs.json``, ``table.md``, ``overview.md`` and the two figures into a folder; returns
    the table's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "runs.json", json.dumps(runs, indent=1))
    table = folder / "table.md"
    files.write_text(table, render(runs, against))
    files.write_text(folder / "overview.md", overview(runs))
    if runs:
        tradeoff(runs).savefig(folder / "tradeoff.png", dpi=120)
        learning_curves(runs).savefig(folder / "curves.png", dpi=120)
    return table


def render(runs: list[Run], against: str | None = None) -> str:
    """Markdown table: mean and standard deviation over seeds; differences in pairs of equal seeds,
    95 % intervals.

    ``against`` names a method whose difference at the same share is one more column.
    """
    groups = grouped(runs)
    full = groups.get(("full", 0.0), {})
    more = "" if against is None else f" minus {against} |"
    lines = [
        f"| method | prune | n | test accuracy, % | minus full | minus uniform |{more} training accuracy, % | a sample is kept in (5 % to 95 % of samples) | trained on, of full | "
        "compute saved | time saved |",
        "|---" * (11 if against is None else 12) + "|",
    ]
    for (method, prune), group in sorted(groups.items(), key=lambda item: item[0][1]):
        accuracies = [100 * run["test_accuracy"] for run in group.values()]
        trained = statistics.mean(run["trained_samples"] / full_samples(run, full) for run in group.values())
        uniform = {} if method.startswith("uniform") or method == "full" else uniform_of(method, prune, groups)
        base = {} if method in ("full", against) else groups.get((against or "", prune), {})
        other = "" if against is None else f" {_difference(group, base)} |"
        lines.append(
            f"| {method} | {prune:g} | {len(group)} | {_mean_std(accuracies)} | "
            f"{_difference(group, full) if method != 'full' else ''} | {_difference(group, uniform)} |{other} "
            f"{100 * statistics.mean(run['train_accuracy'] for run in group.values()):.1f} | {_kept(group)} | {trained:.1%} | "
            f"{_percent(compute_saved(group, full))} | {_percent(time_saved(group, full))} |"
        )
    return "\n".join(lines) + "\n"


def overview(runs: list[Run]) -> str:
    """Markdown table of a row per method and a column per share: mean and standard deviation,
    difference to full data.
    """
    groups = grouped(runs)
    full = groups.get(("full", 0.0), {})
    prunes = sorted({prune for _, prune in groups if prune > 0})
    lines = ["| method |" + "".join(f" {prune:.0%} pruned | minus full |" for prune in prunes)]
    lines.append("|---" * (1 + 2 * len(prunes)) + "|")
    if full:
        accuracies = _mean_std([100 * run["test_accuracy"] for run in full.values()])
        lines.append("| full |" + f" {accuracies} (n = {len(full)}) | |" + " | |" * (len(prunes) - 1))
    for method in dict.fromkeys(name for name, _ in groups if name != "full"):
        cells = []
        for prune in prunes:
            group = groups.get((method, prune), {})
            accuracies = _mean_std([100 * run["test_accuracy"] for run in group.values()]) if group else ""
            cells.append(f" {accuracies} (n = {len(group)}) | {_difference(group, full)} |" if group else " | |")
        lines.append(f"| {method} |" + "".join(cells))
    return "\n".join(lines) + "\n"


def tradeoff(runs: list[Run]) -> Figure:
    """Accuracy against compute saved, one line per method over its shares, with the standard error
    of the mean.
    """
    groups = grouped(runs)
    full = groups.get(("full", 0.0), {})
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for style, method in enumerate(dict.fromkeys(name for name, _ in groups)):
        points = []
        for (name, _), group in sorted(groups.items()):
            saved = compute_saved(group, full)
            if name == method and saved is not None:
                accuracies = [100 * run["test_accuracy"] for run in group.values()]
                spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
                points.append((100 * saved, statistics.mean(accuracies), spread / math.sqrt(len(accuracies))))
        if points:
            x, y, error = zip(*sorted(points), strict=True)
            axes.errorbar(
                x, y, error, label=method, color=f"C{style % 10}", marker="o^sDv"[style // 10 + style % 3], capsize=3
            )
    axes.set(xlabel="compute saved against full data (FLOPs), %", ylabel="test accuracy, last epoch, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=2)
    return figure


def learning_curves(runs: list[Run]) -> Figure:
    """Mean test accuracy over the epochs, one panel per share."""
    groups = grouped(runs)
    prunes = sorted({prune for _, prune in groups if prune > 0}) or [0.0]
    figure = Figure(figsize=(5 * len(prunes), 4.2), layout="constrained")
    methods = list(dict.fromkeys(name for name, _ in groups))
    for axes, prune in zip(figure.subplots(1, len(prunes), squeeze=False, sharey=True).flat, prunes, strict=True):
        for (method, share), group in groups.items():
            if share in (0.0, prune):
                tested: dict[int, list[float]] = {}
                for run in group.values():
                    for epoch in run["epochs"]:
                        if "test_accuracy" in epoch:
                            tested.setdefault(epoch["epoch"], []).append(100 * epoch["test_accuracy"])
                means = {e: statistics.mean(values) for e, values in tested.items() if len(values) == len(group)}
                style = methods.index(method)
                axes.plot(
                    list(means),
                    list(means.values()),
                    label=method,
                    color=f"C{style % 10}",
                    linestyle=("-", "--", ":")[style % 3],
                )
        axes.set(title=f"{prune:.0%} pruned", xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test accuracy, mean over seeds, %")
    figure.axes[0].legend(fontsize=7)
    return figure


def grouped(runs: list[Run]) -> dict[tuple[str, float], Group]:
    """Runs by method and share, then by seed."""
    groups: dict[tuple[str, float], Group] = {}
    for run in runs:
        groups.setdefault((run["method"], run["prune"]), {})[run["config"]["seed"]] = run
    return groups


def uniform_of(method: str, prune: float, groups: dict[tuple[str, float], Group]) -> Group:
    """Uniform random blocking at the same share, in the same wiring; recompute for methods that
    have none.
    """
    wiring = "reuse" if "reuse" in method else "recompute"
    return groups.get((f"uniform-{wiring}", prune), {})


def paired_difference(group: Group, base: Group) -> tuple[float, float] | None:
    """Mean difference of test accuracy, in points, over the seeds both have, and half its 95 %
    interval (Student).

    ``None`` with fewer than two common seeds.
    """
    seeds = sorted(group.keys() & base.keys())
    if len(seeds) < 2:
        return None
    differences = [100 * (group[s]["test_accuracy"] - base[s]["test_accuracy"]) for s in seeds]
    half = t.ppf(0.975, len(seeds) - 1) * statistics.stdev(differences) / math.sqrt(len(seeds))
    return statistics.mean(differences), float(half)


def time_saved(group: Group, full: Group) -> float | None:
    """1 - time of the training epochs / that of full data, mean over common seeds; CPU seconds
    where a CPU trained.
    """
    seeds = group.keys() & full.keys()
    if not seeds:
        return None
    return 1 - statistics.mean(_seconds(group[s]) / _seconds(full[s]) for s in seeds)


def compute_saved(group: Group, full: Group) -> float | None:
    """1 - FLOPs of the training steps / those of full data, mean over the runs; a backward counts
    as two forwards.

    A sample that trains costs 1. One that is stopped under ``reuse`` costs its shallow part s.
    Under ``recompute`` every sample of a pruned batch pays s / 3 for the pass that scores, a
    quarter of that at half the resolution, unless the criterion needs none. A forward of the whole
    model without gradients, as selective backprop makes, costs 1 / 3.
    """
    shares = []
    for run in group.values():
        config, trained = run["config"], run["trained_samples"]
        if run["cut"] is None:
            extra = (run["deep_samples"] - trained) / 3
        elif config["shallow"] == "reuse":
            extra = (run["samples"] - trained) * run["shallow_share"]
        else:
            scored = 0 if config["method"] == "uniform" else run["pruned_steps"] * config["batch_size"]
            extra = scored * run["processes"] * run["shallow_share"] * config["scoring_scale"] ** 2 / 3
        shares.append((trained + extra) / full_samples(run, full))
    return 1 - statistics.mean(shares) if shares else None


def full_samples(run: Run, full: Group) -> int:
    """Samples that training on full data would see: of the recipe, not of a shortened schedule."""
    reference = full.get(run["config"]["seed"], run)
    return int(reference["full_samples"])


def _seconds(run: Run) -> float:
    return float(run["train_cpu_seconds" if "threads" in run["device"] else "train_seconds"])


def _mean_std(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else math.nan:.2f}"


def _difference(group: Group, base: Group) -> str:
    difference = paired_difference(group, base)
    return "" if difference is None else f"{difference[0]:+.2f} ± {difference[1]:.2f}"


def _kept(group: Group) -> str:
    """In which share of its pruned batches a rarely and an often kept sample went on; empty where
    none is stopped at a cut.
    """
    spreads = [spread for run in group.values() if (spread := run.get("kept_share_quantiles"))]
    if not spreads:
        return ""
    low, high = (statistics.mean(spread[place] for spread in spreads) for place in ("0.05", "0.95"))
    return f"{low:.0%} to {high:.0%}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
