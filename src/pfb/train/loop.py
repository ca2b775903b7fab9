"""The training loop: an ordinary one, with pfb's three lines marked."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn
from torch.utils.data import DataLoader

import pfb
from pfb.train import checkpoint, methods
from pfb.train.config import TrainConfig
from pfb.train.data import Batch, EpochSampler, Source, load
from pfb.train.errors import RunError
from pfb.train.models import build
from pfb.train.records import Records
from pfb.train.summary import measure_full_cost, render
from pfb.train.versions import processor, versions

console = Console()

TRAIN_ACCURACY_SAMPLES = 10_000
TOTALS = ("train_seconds", "train_cpu_seconds", "steps", "pruned_steps", "samples", "deep_samples", "trained_samples")
"""What a run adds up: samples loaded, sent forward through the deep part, and trained on."""


def train(config: TrainConfig, resume: bool = False, source: Source | None = None) -> dict[str, Any]:
    """Run a training to its end and return its summary, which also lies in ``config.out / "summary.json"``.

    Args:
        config: all settings.
        resume: continue the run in ``config.out`` after its last finished epoch. The end is bit-identical to that of a
            run that was not interrupted, on the same device and versions.
        source: the data, if it is loaded already: what ``load(config)`` returns.

    Raises:
        RunError: bad settings or data, a full disk, a damaged checkpoint, a loss that is not finite.
    """
    accelerator = Accelerator(
        mixed_precision=config.precision, cpu=config.cpu, log_with="tensorboard", project_dir=str(config.out)
    )
    set_seed(config.seed)
    source = load(config) if source is None else source
    sampler = EpochSampler(_length(source.train), config.seed)
    train_loader, test_loader, learned_loader = _loaders(source, config, sampler)
    if len(train_loader) == 0:
        raise RunError(
            f"--batch-size {config.batch_size} is larger than the training set of {_length(source.train)} samples"
        )
    model = build(config.model, len(source.classes), source.channels, source.image_size)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    plain_model = model
    train_loader, test_loader, learned_loader = accelerator.prepare(train_loader, test_loader, learned_loader)
    steps_per_epoch = len(train_loader)
    total_steps = steps_per_epoch * config.epochs
    batch_samples = config.batch_size * accelerator.num_processes
    criterion_at_cut = methods.importance(config)
    blocker = methods.attach(model, config, criterion_at_cut, total_steps)  # pfb, line 1
    method = methods.method(config, _length(source.train), accelerator.device, accelerator.num_processes)
    schedule = config.schedule()
    blocks = criterion_at_cut is not None
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    lr_schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=total_steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing, reduction="none")
    model, optimizer = accelerator.prepare(model, optimizer)
    records = Records(_length(source.train), accelerator.device)
    accelerator.register_for_checkpointing(lr_schedule, blocker, method, records)

    if resume:
        manifest = checkpoint.load_latest(accelerator, config.out)
        first_epoch = manifest["epoch"]
        _forget_lines_after(config.out / "metrics.jsonl", first_epoch)
        totals = manifest["totals"]
    else:
        first_epoch = 0
        totals = dict.fromkeys(TOTALS, 0)
        if accelerator.is_main_process:
            _make_folder(config)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("tensorboard")
    _say(
        accelerator,
        f"{config.data}: {_length(source.train)} training and {_length(source.test)} test images, "
        f"{len(source.classes)} classes; {config.model} with {sum(p.numel() for p in model.parameters()):,} parameters on "
        f"{accelerator.device}",
    )
    if blocks:
        _say(
            accelerator,
            f"{config.method}: stops {config.prune:.0%} of every batch after {blocker.cut!r}, {config.shallow}",
        )

    metrics: dict[str, Any] = {}
    with _progress(accelerator) as progress:
        task = progress.add_task("train", total=total_steps, completed=first_epoch * steps_per_epoch)
        for epoch in range(first_epoch, config.epochs):
            train_loader.set_epoch(epoch)
            sampler.only = method.load(schedule.share(epoch, config.epochs), sampler.generator(purpose=1))
            epoch_steps = len(train_loader)
            model.train()
            counts: dict[str, float] = dict.fromkeys(TOTALS, 0)
            loss_sum = torch.zeros((), device=accelerator.device)
            begin, cpu_begin = time.perf_counter(), time.process_time()
            for batch_number, batch in enumerate(train_loader, start=1):
                image, label, index = source.prepare_train(batch["image"]), batch["label"], batch["index"]
                if config.channels_last:
                    image = image.to(memory_format=torch.channels_last)
                share = schedule.share(lr_schedule.last_epoch, total_steps)
                chosen = method.choose(model, criterion, image, label, share)
                if chosen is not None:
                    image, label, index = image[chosen], label[chosen], index[chosen]
                if isinstance(criterion_at_cut, pfb.PerClass):
                    criterion_at_cut.see(label)
                logits = model(image)
                losses = criterion(logits, blocker.select(label))  # pfb, line 2
                loss = method.reduce(losses, blocker.select(index))
                accelerator.backward(loss)
                _record(records, blocker, batch)
                optimizer.step()
                optimizer.zero_grad()
                blocker.step()  # pfb, line 3
                # Methods that load fewer samples take fewer steps, and the learning rate arrives with the others'.
                position = epoch * steps_per_epoch + round(batch_number * steps_per_epoch / epoch_steps)
                while lr_schedule.last_epoch < position:
                    lr_schedule.step()

                loss_sum += loss.detach()
                loaded, trained = len(batch["label"]), len(logits)
                counts["steps"] += 1
                counts["samples"] += loaded * accelerator.num_processes
                counts["trained_samples"] += trained * accelerator.num_processes
                counts["deep_samples"] += (trained + (0 if chosen is None else loaded)) * accelerator.num_processes
                counts["pruned_steps"] += trained < loaded
                if blocker.steps % config.log_every == 0:
                    _log(
                        accelerator,
                        config,
                        {"step": position, "epoch": epoch, "loss": loss.item(), **_without_step(blocker.stats)},
                    )
                progress.update(task, completed=position)
            records.merge(accelerator)
            counts["train_seconds"] = time.perf_counter() - begin
            counts["train_cpu_seconds"] = time.process_time() - cpu_begin
            train_loss = float(accelerator.reduce(loss_sum, "mean")) / max(1, epoch_steps)
            if not math.isfinite(train_loss):
                raise RunError(
                    f"the training loss became {train_loss} in epoch {epoch + 1}. Lower --lr (now {config.lr}); the state "
                    f"before this epoch is kept in {config.out}"
                )
            for name, value in counts.items():
                totals[name] += value
            metrics = {
                "epoch": epoch + 1,
                "step": (epoch + 1) * steps_per_epoch,
                "train_loss": train_loss,
                **(
                    _evaluate(accelerator, model, test_loader, source, criterion, "test")
                    if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs
                    else {}
                ),
                "lr": lr_schedule.get_last_lr()[0],
                "pruned_share": 1 - counts["trained_samples"] / (steps_per_epoch * batch_samples),
                "train_seconds": counts["train_seconds"],
            }
            _log(accelerator, config, metrics)
            checkpoint.save(accelerator, config.out, epoch + 1, {"totals": totals, "metrics": metrics})
            tested = f"  test accuracy {metrics['test_accuracy']:.2%}" if "test_accuracy" in metrics else ""
            progress.console.print(
                f"epoch {epoch + 1:3d}/{config.epochs}  loss {train_loss:.3f}{tested}  "
                f"pruned {metrics['pruned_share']:.1%}  {metrics['train_seconds']:.1f} s"
            )
    if not metrics:  # resumed after the last epoch
        metrics = manifest["metrics"]
    _save_records(accelerator, records, config)
    learned = _evaluate(accelerator, model, learned_loader, source, criterion, "train")
    cost = measure_full_cost(plain_model, blocker, source, config, accelerator, totals)
    summary = {
        "config": json.loads(config.to_json()),
        "versions": versions(),
        "device": _device_name(accelerator),
        "processes": accelerator.num_processes,
        "cut": blocker.cut if blocks else None,
        "full_samples": total_steps * batch_samples,
        "classes": source.classes,
        **metrics,
        "train_accuracy": learned["train_accuracy"],
        **totals,
        **cost,
        "peak_memory_bytes": _peak_memory(accelerator),
    }
    if accelerator.is_main_process:
        checkpoint.write_text(config.out / "summary.json", json.dumps(summary, indent=2))
        console.print(render(summary))
    accelerator.end_training()
    return summary


def _loaders(source: Source, config: TrainConfig, sampler: EpochSampler) -> tuple[Any, Any, Any]:
    """For training, for the test, and some training images in order, to see how well they have been learned."""
    workers = 0 if source.collate is not None else config.workers
    common: dict[str, Any] = {
        "batch_size": config.batch_size,
        "num_workers": workers,
        "collate_fn": source.collate,
        "pin_memory": torch.cuda.is_available() and not config.cpu,
    }
    count = min(_length(source.train), TRAIN_ACCURACY_SAMPLES)
    some = torch.linspace(0, _length(source.train) - 1, count).long().tolist()
    return (
        DataLoader(source.train, sampler=sampler, drop_last=True, **common),
        DataLoader(source.test, shuffle=False, **common),
        DataLoader(source.train, sampler=some, **common),
    )


def _record(records: Records, blocker: pfb.Blocker, batch: Batch) -> None:
    selection = blocker.selection
    if selection is not None:
        density = blocker.last_log_density
        records.add(batch["index"], selection.select(batch["index"]), density)


@torch.no_grad()
def _evaluate(
    accelerator: Accelerator, model: nn.Module, loader: Any, source: Source, criterion: nn.Module, name: str
) -> dict[str, float]:
    model.eval()
    correct_loss_count = torch.zeros(3, device=accelerator.device, dtype=torch.float64)
    for batch in loader:
        logits = model(source.prepare_test(batch["image"]))
        loss = criterion(logits, batch["label"]).sum()
        correct = (logits.argmax(1) == batch["label"]).sum()
        correct_loss_count += torch.stack([correct, loss, torch.full_like(loss, len(logits))]).double()
    correct, loss, count = accelerator.reduce(correct_loss_count, "sum").tolist()
    return {f"{name}_loss": loss / count, f"{name}_accuracy": correct / count}


def _without_step(stats: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in stats.items() if name != "step"}


def _log(accelerator: Accelerator, config: TrainConfig, values: dict[str, float]) -> None:
    """One JSON line, and one TensorBoard point per value."""
    if not accelerator.is_main_process:
        return
    with (config.out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(values) + "\n")
    kind = "epoch" if "train_loss" in values else "step"
    points = {f"{kind}/{name}": value for name, value in values.items() if name not in ("epoch", "step")}
    accelerator.log(points, step=int(values["step"]))


def _forget_lines_after(log: Path, epochs: int) -> None:
    """Drop what was logged after the checkpoint that training continues from."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line cut off by the interruption
            values = json.loads(line)
            finished = values["epoch"] if "train_loss" in values else values["epoch"] + 1
            if finished <= epochs:
                kept.append(line + "\n")
    checkpoint.write_text(log, "".join(kept))


def _make_folder(config: TrainConfig) -> None:
    """An empty folder for the run with its configuration in it."""
    run = config.out
    if run.exists() and any(run.iterdir()):
        if not (run / "config.json").exists():
            raise RunError(f"--out {run} holds files of something else; choose another folder")
        if not config.overwrite:
            raise RunError(f"--out {run} holds a run already: continue it with --resume {run}, or pass --overwrite")
        shutil.rmtree(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(run / "config.json", config.to_json())
    except OSError as error:
        raise RunError(f"--out {run} cannot be written ({error})") from error


def _save_records(accelerator: Accelerator, records: Records, config: TrainConfig) -> None:
    if accelerator.is_main_process:
        draft = config.out / "records.draft"
        torch.save({name: value.cpu() for name, value in records.state_dict().items()}, draft)
        draft.replace(config.out / "records.pt")


@contextlib.contextmanager
def _progress(accelerator: Accelerator) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not accelerator.is_main_process, transient=True) as progress:
        yield progress


def _say(accelerator: Accelerator, text: str) -> None:
    if accelerator.is_main_process:
        console.print(text, highlight=False)


def _length(dataset: Any) -> int:
    return len(dataset)


def _device_name(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name(accelerator.device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def _peak_memory(accelerator: Accelerator) -> int:
    """Of the device where it can tell, else of this process."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024
