"""What came out of a run, for the terminal; and on which device."""

from __future__ import annotations

import json
import resource
import sys
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from pfb.lab.origin import processor, versions
from pfb.lab.train.methods import method_of
from pfb.lab.train.output.cost import compute_of, measure_full_cost

if TYPE_CHECKING:
    from pfb.lab.train.setup import Setup


def summary_of(run: Setup, metrics: dict[str, Any]) -> dict[str, Any]:
    """What came out of a run and what it cost, as ``summary.json`` has it.

    Args:
        run: at its end.
        metrics: of its last epoch, and its training accuracy.
    """
    config, device = run.config, run.accelerator.device
    summary = {
        "config": json.loads(config.to_json()),
        "versions": versions(),
        "device": device_name(device),
        "processes": run.accelerator.num_processes,
        "task": run.source.task,
        "cut": run.cut,
        "full_samples": config.epochs * run.length.per_epoch * run.length.samples,
        "classes": run.source.classes,
        **metrics,
        **{f"best_{name}": value for name, value in run.best.items()},
        **run.totals,
    }
    summary["compute"] = compute_of(summary, run.method, run.plain_model, run.two_samples())
    return summary | measure_full_cost(run) | {"peak_memory_bytes": peak_memory(device)}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's and how many of its threads are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> int:
    """Bytes, of the device where it can tell, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


def render(summary: dict[str, Any]) -> Table:
    """The summary as a table for the terminal."""
    config = summary["config"]
    table = Table(title=f"{config['method']} on {config['data']}, {config['model']}", show_header=False)
    table.add_row("test accuracy, last epoch", f"{summary['test_accuracy']:.2%}")
    others = {"top5_accuracy": "accuracy among the first 5", "mean_iou": "mean IoU", "perplexity": "perplexity"}
    for name, title in {
        **{f"test_{what}": title for what, title in others.items()},
        "ema_test_accuracy": "accuracy of the average of weights",
    }.items():
        if name in summary:
            table.add_row(f"test {title}", f"{summary[name]:.2%}" if "accuracy" in name else f"{summary[name]:.4g}")
    if "best_epoch" in summary:
        name = "best_test_mean_iou" if "best_test_mean_iou" in summary else "best_test_accuracy"
        table.add_row(
            f"best, after epoch {summary['best_epoch']}", f"{summary[name]:.2%} (chosen on the test set: flattering)"
        )
    table.add_row("training accuracy", f"{summary['train_accuracy']:.2%}")
    full, trained = summary["full_samples"], summary["trained_samples"]
    table.add_row("samples loaded", f"{summary['samples']:,} of {full:,}")
    if method_of(config["method"]).before_model:
        where = "of them left out before the model"
    else:
        where = f"of them stopped after {summary['cut']!r}" if summary["cut"] else "of them left out"
    if stopped := summary["samples"] - trained:
        table.add_row(where, f"{stopped:,} ({stopped / summary['samples']:.1%})")
    table.add_row("samples trained on", f"{trained:,} ({trained / full:.1%} of full training)")
    table.add_row("compute", f"{summary['compute']:.1%} of full training's operations")
    waiting = summary.get("waiting_seconds", 0.0) / summary["train_seconds"]
    table.add_row("training time", f"{summary['train_seconds']:.1f} s, of it {waiting:.1%} waiting for data")
    if "step_ratio" in summary:
        ratio, steps = summary["step_ratio"], summary["step_seconds"]
        saved = summary["saved_for_backward_bytes"]
        table.add_row(
            "the same on full data",
            f"{summary['full_train_seconds']:.1f} s, so {summary['time_saved']:.1%} saved "
            f"(from {steps['pairs']} pairs of a pruned and a full step)",
        )
        table.add_row(
            "one pruned step / one full step",
            f"{1000 * steps['pruned']['median']:.1f} ms / {1000 * steps['full']['median']:.1f} ms; in pairs "
            f"{ratio['median']:.2f} (quartiles {ratio['low']:.2f} to {ratio['high']:.2f})",
        )
        table.add_row(
            "kept for backward, pruned / full step", f"{saved['pruned'] / 2**20:.1f} / {saved['full'] / 2**20:.1f} MiB"
        )
    table.add_row("peak memory", f"{summary['peak_memory_bytes'] / 2**20:.0f} MiB")
    return table
