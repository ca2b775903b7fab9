"""What the run cost, and what it would have cost on full data: counted, and measured on real
unpruned steps after the run.
"""

from __future__ import annotations

import copy
import itertools
import resource
import sys
from typing import Any

import torch
from accelerate import Accelerator
from rich.table import Table
from torch import Tensor, nn

import pfb
from pfb.features.cost import shallow_share
from pfb.lab.baselines import PerClass
from pfb.lab.origin import processor
from pfb.lab.train import methods, optim, task
from pfb.lab.train.compute import operations
from pfb.lab.train.config import TrainConfig
from pfb.lab.train.data import Source
from pfb.selection.selection import keep_count
from pfb.utils.timing import Spread, count_saved_bytes, interleaved_seconds

PAIRS = 15


def compute_of(summary: dict[str, Any], model: nn.Module, two_samples: Tensor) -> float:
    """What a run took of full training's FLOPs, as :func:`.compute.operations` counts them, by the
    cut and counts that stand in its summary so far.
    """
    shallow = 0.0
    if summary["cut"] is not None:
        with torch.compiler.set_stance("force_eager"):  # operations inside of compiled code cannot be counted
            shallow = shallow_share(model, summary["cut"], two_samples)
    return operations(summary, shallow) / float(summary["full_samples"])


def measure_full_cost(
    model: nn.Module,
    blocker: pfb.Blocker,
    source: Source,
    config: TrainConfig,
    accelerator: Accelerator,
    totals: dict[str, Any],
    full_steps: int,
) -> dict[str, Any]:
    """Time pruned and unpruned steps in turn, on a copy of the trained model and batches of its
    training data.

    The run's full cost is its own time plus, for every step that was pruned, the median difference
    between an unpruned and a pruned step (in a ramp, the part of it that was stopped), and an
    unpruned one for every step of ``full_steps`` whose samples were not loaded. Loading is not
    counted there; where it is counted, and in evaluation and checkpoints, it stays as it was.
    """
    criterion = methods.importance(config)
    if config.method == "full" or (criterion is not None and totals["pruned_steps"] == 0):
        taken = totals["steps"] / max(1, full_steps)  # the others were not loaded
        return {"full_train_seconds": totals["train_seconds"] / (taken or 1.0), "time_saved": 1.0 - taken}
    if criterion is None:  # it skips whole steps or adds forwards: only a run on full data tells what it saved
        return {"full_train_seconds": None, "time_saved": None}
    device = accelerator.device
    model = copy.deepcopy(model).train()  # the copy's hooks are inert; the trained model stays as it is
    estimator = copy.deepcopy(blocker.estimator)
    estimator.updates = 0  # of the copy, which sees two batches over and over
    originals = methods.originals(config)
    twin = methods.attach_as(model, config, blocker.cut, config.prune, criterion, estimator, originals=originals)
    if config.compile:
        torch._dynamo.reset()  # what is known of the trained model's hooks is not true of the copy's
        model.compile()
    optimizer = optim.optimizer(model, config)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    loader = torch.utils.data.DataLoader(
        source.train, batch_size=config.batch_size, drop_last=True, collate_fn=source.collate
    )
    prepared = []
    for batch in itertools.islice(loader, 2):
        on_device = {name: value.to(device) for name, value in batch.items()}
        original = None if originals is None else source.original(on_device)
        prepared.append((source.prepare_train(on_device["input"]), on_device["label"], original))
    batches = itertools.cycle(prepared)

    def forward(pruned: bool) -> Tensor:
        image, label, original = next(batches)
        if originals is not None and pruned:
            originals.show(original)
        if isinstance(criterion, PerClass):
            criterion.see(label)
        if config.channels_last:
            image = image.to(memory_format=torch.channels_last)
        with accelerator.autocast():
            output, kept = model(image), twin.select(label)
            return task.losses(task.logits_of(output, kept), kept, config.label_smoothing).mean()

    def step(pruned: bool = True) -> None:
        forward(pruned).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        twin.step()

    def full_step() -> None:
        with twin.paused():
            step(pruned=False)

    for _ in range(3):  # steady state: estimator seeded, buffers allocated
        step()
    seconds = interleaved_seconds({"pruned": step, "full": full_step}, device, repeats=PAIRS)
    saved_bytes = {}
    for name in ("pruned", "full"):
        twin_paused = twin.paused() if name == "full" else torch.enable_grad()
        with twin_paused, count_saved_bytes() as saved:
            forward(name == "pruned")
        saved_bytes[name] = saved.total
    twin.detach()
    full, pruned = Spread.of(seconds["full"]), Spread.of(seconds["pruned"])
    skipped_steps = full_steps - totals["steps"]
    stopped = (config.batch_size - keep_count(config.batch_size, config.prune)) * accelerator.num_processes
    whole_steps = (totals["samples"] - totals["trained_samples"]) / max(1, stopped)
    full_train_seconds = (
        totals["train_seconds"] + whole_steps * (full.median - pruned.median) + skipped_steps * full.median
    )
    return {
        "full_train_seconds": full_train_seconds,
        "time_saved": 1 - totals["train_seconds"] / full_train_seconds,
        "step_seconds": {"pairs": PAIRS, "full": full.__dict__, "pruned": pruned.__dict__},
        "step_ratio": Spread.of_ratios(seconds["pruned"], seconds["full"]).__dict__,
        "saved_for_backward_bytes": saved_bytes,
    }


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
    if summary["cut"]:
        stopped = summary["samples"] - trained
        table.add_row("of them stopped at the cut", f"{stopped:,} ({stopped / summary['samples']:.1%})")
    table.add_row("samples trained on", f"{trained:,} ({trained / full:.1%} of full training)")
    if "compute" in summary:  # runs of older versions lack it
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
