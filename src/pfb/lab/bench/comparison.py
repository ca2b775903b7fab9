"""What a grid of runs says: a table of paired differences, and the figures beside it."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pfb.lab import files
from pfb.lab.bench import output
from pfb.lab.bench.methods import UNIFORM
from pfb.lab.train.compute import operations
from pfb.lab.train.pairs import Group, shown_difference

Run = dict[str, Any]


def write(runs: list[Run], folder: Path, against: str | None = None) -> Path:
    """Write ``runs.jsonl``, a run a line, and what is made of it into a folder: ``table.md``,
    ``overview.md`` and the two figures; returns the table's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = output.rounded(runs)
    files.write_text(folder / "runs.jsonl", "".join(json.dumps(run) + "\n" for run in runs))
    table = folder / "table.md"
    files.write_text(table, render(runs, against))
    files.write_text(folder / "overview.md", overview(runs))
    if runs:
        output.save(tradeoff(runs), folder / "tradeoff.png")
        output.save(learning_curves(runs), folder / "curves.png")
    return table


def read(file: Path) -> list[Run]:
    """The runs that :func:`write` left in a file."""
    return [json.loads(line) for line in files.read_text(file).splitlines()]


def render(runs: list[Run], against: str | None = None) -> str:
    """Markdown table: mean and standard deviation over seeds; differences in pairs of equal seeds,
    95 % intervals.

    ``against`` names a method whose difference at the same share is one more column.
    """
    groups = grouped(runs)
    full = groups.get(("full", 0.0), {})
    columns = ["method", "prune", "n", "test accuracy, %", "minus full", "minus uniform"]
    columns += [] if against is None else [f"minus {against}"]
    columns += ["training accuracy, %", "a sample is kept in (5 % to 95 % of samples)", "trained on, of full"]
    rows = []
    for (method, prune), group in sorted(groups.items(), key=lambda item: item[0][1]):
        base = full if method != "full" else {}
        others = {} if method == against else groups.get((against or "", prune), {})
        trained = statistics.mean(run["trained_samples"] / full_samples(run, full) for run in group.values())
        rows.append(
            [
                method,
                f"{prune:g}",
                len(group),
                _mean_std([100 * run["test_accuracy"] for run in group.values()]),
                shown_difference(group, base),
                shown_difference(group, uniform_of(method, prune, groups)),
                *([] if against is None else [shown_difference(group, others)]),
                f"{100 * statistics.mean(run['train_accuracy'] for run in group.values()):.1f}",
                _kept(group),
                f"{trained:.1%}",
                _percent(compute_saved(group, full)),
                _percent(time_saved(group, full)),
            ]
        )
    return output.table([*columns, "compute saved", "time saved"], rows)


def overview(runs: list[Run]) -> str:
    """Markdown table of a row per method and a column per share: mean and standard deviation,
    difference to full data.
    """
    groups = grouped(runs)
    full = groups.get(("full", 0.0), {})
    prunes = sorted({prune for _, prune in groups if prune > 0})
    header = ["method"]
    for prune in prunes:
        header += [f"{prune:.0%} pruned", "minus full"]
    rows = []
    if full:
        rows.append(["full", _accuracy(full), *[""] * (len(header) - 2)])
    for method in dict.fromkeys(name for name, _ in groups if name != "full"):
        cells = [groups.get((method, prune), {}) for prune in prunes]
        rows.append([method, *(text for group in cells for text in (_accuracy(group), shown_difference(group, full)))])
    return output.table(header, rows)


def tradeoff(runs: list[Run]) -> Figure:
    """Accuracy against compute saved, one line per method over its shares, with the standard error
    of the mean.
    """
    groups = grouped(runs)
    full = groups.get(("full", 0.0), {})
    figure, (axes,) = output.panels(8, 5)
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
    axes.legend(fontsize=8, ncols=2)
    return figure


def learning_curves(runs: list[Run]) -> Figure:
    """Mean test accuracy over the epochs, one panel per share."""
    groups = grouped(runs)
    prunes = sorted({prune for _, prune in groups if prune > 0}) or [0.0]
    figure, panels = output.panels(2 + 4.5 * len(prunes), 4.2, len(prunes), sharey=True)
    methods = list(dict.fromkeys(name for name, _ in groups))
    for axes, prune in zip(panels, prunes, strict=True):
        for (method, share), group in groups.items():
            if share in (0.0, prune):
                tested: dict[int, list[float]] = {}
                for run in group.values():
                    for epoch, accuracy in run["curve"]:
                        tested.setdefault(epoch, []).append(100 * accuracy)
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
    figure.axes[0].set_ylabel("test accuracy, mean over seeds, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure


def grouped(runs: list[Run]) -> dict[tuple[str, float], Group]:
    """Runs by method and share, then by seed."""
    groups: dict[tuple[str, float], Group] = {}
    for run in runs:
        groups.setdefault((run["method"], run["prune"]), {})[run["config"]["seed"]] = run
    return groups


def uniform_of(method: str, prune: float, groups: dict[tuple[str, float], Group]) -> Group:
    """Uniform random blocking at the same share, in the same wiring; recompute for methods that
    have none. Nothing for full data, and for uniform blocking itself.
    """
    if method == "full" or method in UNIFORM.values():
        return {}
    run = next(iter(groups[method, prune].values()))
    wiring = run["config"]["shallow"] if run["cut"] is not None else "recompute"
    return groups.get((UNIFORM[wiring], prune), {})


def time_saved(group: Group, full: Group) -> float | None:
    """1 - time of the training epochs / that of full data, mean over common seeds; CPU seconds
    where a CPU trained.
    """
    seeds = group.keys() & full.keys()
    if not seeds:
        return None
    return 1 - float(statistics.mean(group[s]["seconds"] / full[s]["seconds"] for s in seeds))


def compute_saved(group: Group, full: Group) -> float | None:
    """1 - FLOPs of the training steps / those of full data, mean over the runs."""
    shares = [operations(run, run["shallow_share"]) / full_samples(run, full) for run in group.values()]
    return 1 - statistics.mean(shares) if shares else None


def full_samples(run: Run, full: Group) -> int:
    """Samples that training on full data would see: of the recipe, not of a shortened schedule."""
    reference = full.get(run["config"]["seed"], run)
    return int(reference["full_samples"])


def _mean_std(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else math.nan:.2f}"


def _accuracy(group: Group) -> str:
    return f"{_mean_std([100 * run['test_accuracy'] for run in group.values()])} (n = {len(group)})" if group else ""


def _kept(group: Group) -> str:
    """In which share of its pruned batches a rarely and an often kept sample went on; empty where
    none is stopped at a cut.
    """
    spreads = [spread for run in group.values() if (spread := run["kept_share_quantiles"])]
    if not spreads:
        return ""
    low, high = (statistics.mean(ends) for ends in zip(*spreads, strict=True))
    return f"{low:.0%} to {high:.0%}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
