"""The training loop: an ordinary one, with pfb's three lines marked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shlex
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pfb.lab.baselines import PerClass
from pfb.lab.errors import RunError
from pfb.lab.origin import versions
from pfb.lab.train import checkpoint, compiling, extension, optim, task, tracking
from pfb.lab.train.augment import mix
from pfb.lab.train.config import TrainConfig
from pfb.lab.train.data import Batch, Source, labels_of
from pfb.lab.train.evaluation import evaluate
from pfb.lab.train.folder import AVERAGE, BEST, WEIGHTS, RunFolder
from pfb.lab.train.idle import idle
from pfb.lab.train.loaders import Waiting
from pfb.lab.train.setup import TOTALS, Setup
from pfb.lab.train.summary import compute_of, device_name, measure_full_cost, peak_memory, render
from pfb.lab.train.terminal import console, epoch_line, headline, show


def train(config: TrainConfig, resume: bool = False, source: Source | None = None) -> dict[str, Any]:
    """Run a training to its end and return its summary, which also lies in ``config.out /
    "summary.json"``.

    Args:
        config: all settings.
        resume: continue the run in ``config.out`` after its last finished epoch. The end is
            bit-identical to that of a run that was not interrupted, on the same device and
            versions.
        source: the data, if it is loaded already: what ``load(config)`` returns.

    Raises:
        RunError: bad settings or data, a full disk, a damaged checkpoint, a loss that is not
            finite.
    """
    if resume and (summary := _finished(config)) is not None:
        return summary
    with compiling.in_one_line(config):
        return Training(config, source, resume).run(resume)


def dry_run(config: TrainConfig) -> None:
    """Check all that can be checked, take a full and a pruned step and an evaluation of one batch,
    and write nothing.

    Raises:
        RunError: what the run itself would raise.
    """
    RunFolder(config.out).check_free(config.overwrite)
    # The first step prunes already.
    training = Training(dataclasses.replace(config, start=0.0, stop=1.0, ramp=0, accumulate=1))
    training.sampler.set_epoch(0)
    training.model.train()
    with compiling.in_one_line(config):
        with training.blocker.paused():
            training.step(next(iter(training.train_loader)))
        _, loaded, trained, _ = training.step(next(iter(training.train_loader)))
        training.evaluate(training.model, [next(iter(training.test_loader))], "test")
    training.say_what(config)
    training.say(
        f"{training.steps_per_epoch} steps in each of {config.epochs} epochs. A full step, one on {trained} of "
        f"{loaded} samples and an evaluation went well; nothing was written"
    )
    training.accelerator.free_memory()


class Training(Setup):
    """A run, from its parts to its end."""

    def run(self, resume: bool) -> dict[str, Any]:
        """Train to the end, from the start or from the latest checkpoint; returns the summary, or
        the last epoch's metrics where the time was over before.
        """
        main = self.accelerator.is_main_process
        with self.folder.saying_how_to_go_on():
            if main and not resume:
                self.folder.claim(self.config.overwrite)
            with self.folder.locked() if main else contextlib.nullcontext():
                if resume and (summary := _finished(self.config)) is not None:  # while we waited for data
                    return summary
                metrics = self._epochs(resume)
                return metrics if self.out_of_time else self.finish(metrics)

    def _epochs(self, resume: bool) -> dict[str, Any]:
        """All epochs that are not done yet; returns the last one's metrics."""
        config, accelerator, folder, model = self.config, self.accelerator, self.folder, self.plain_model
        first_epoch, metrics = 0, {}
        if resume:
            first_epoch, progress = self._load()
            self.totals, metrics = self.totals | progress["totals"], progress["metrics"]
            self.best = progress.get("best", {})
        if accelerator.is_main_process:
            folder.continue_after(first_epoch) if resume else folder.begin(config)
        accelerator.wait_for_everyone()
        tracking.start(accelerator, config)
        self.say_what(self.config)
        begun = first_epoch * self.steps_per_epoch
        with self.bars.shown(), self.bars.task("train", self.total_steps, begun) as on_step:
            self.budget.epochs_begin()
            for epoch in range(first_epoch, config.epochs):
                if not self.budget.allows_another():
                    self._stop(epoch)
                    break
                metrics = self.epoch(epoch, on_step)
                self._log(metrics)
                self._keep_the_best(metrics)
                progress = {"totals": self.totals, "metrics": metrics, "best": self.best}
                checkpoint.save(accelerator, config.out, epoch + 1, model, self.parts, progress, self.origin)
                self.say(epoch_line(metrics, config.epochs))
                self.budget.epoch_ends()
        return metrics

    def _load(self) -> tuple[int, dict[str, Any]]:
        """The latest checkpoint: how many epochs are done, and the progress noted in it."""
        config = self.config
        done, progress = checkpoint.load(config.out, self.plain_model, self.parts, self.origin, config.extended_from)
        if extension.begins(config, done):
            self.lr_schedule = optim.schedule_anew(self.plain_optimizer, config, self.cycle_steps)
            self.parts["lr_schedule"] = self.lr_schedule
            extension.restart(self.blocker)
            self.say(extension.said(config))
        return done, progress

    def _stop(self, done: int) -> None:
        """End before the end: the time is over."""
        self.out_of_time = True
        self.say(
            f"stopped after epoch {done} of {self.config.epochs}: another would end after the "
            f"{self.config.minutes:g} minutes of --minutes. Continue with: "
            f"pfb train --resume {shlex.quote(str(self.config.out))}"
        )
        self.accelerator.end_training()

    def _keep_the_best(self, metrics: dict[str, Any]) -> None:
        """Weights that do better on the test set than all before. After an interruption the same
        are written again.
        """
        name = "test_mean_iou" if "test_mean_iou" in metrics else "test_accuracy"
        if metrics.get(name, -math.inf) > self.best.get(name, -math.inf):
            self.best = {"epoch": metrics["epoch"], name: metrics[name]}
            if self.accelerator.is_main_process:
                self.folder.write_weights(BEST, self.plain_model)

    def epoch(self, epoch: int, on_step: Callable[[int], None]) -> dict[str, Any]:
        """Train on one epoch and evaluate; returns its metrics."""
        config, accelerator = self.config, self.accelerator
        self.train_loader.set_epoch(epoch)
        self.sampler.set_epoch(epoch)  # whatever the loader wraps it in
        share = self.schedule.share(epoch - config.extended_from, self.cycle_epochs)
        self.sampler.only = self.method.load(share, self.sampler.random_numbers(purpose=1))
        epoch_steps = len(self.train_loader)
        counts: dict[str, float] = dict.fromkeys(TOTALS, 0)
        loss_sum = torch.zeros((), device=accelerator.device)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        batches = Waiting(self.train_loader, accelerator.device)
        self.model.train()
        for batch_number, batch in enumerate(batches, start=1):
            with accelerator.accumulate(self.model):
                loss, loaded, trained, scored = self.step(batch)
            counts["steps"] += 1
            # Methods that load fewer samples take fewer steps, and the learning rate arrives with
            # the others'.
            position = epoch * self.steps_per_epoch + round(batch_number * self.steps_per_epoch / epoch_steps)
            while accelerator.sync_gradients and self.lr_schedule.last_epoch < position - self.steps_before:
                self.lr_schedule.step()
            loss_sum += loss
            counts["samples"] += loaded * accelerator.num_processes
            counts["trained_samples"] += trained * accelerator.num_processes
            counts["deep_samples"] += (trained + scored) * accelerator.num_processes
            counts["pruned_steps"] += trained < loaded
            if accelerator.sync_gradients and self.blocker.steps % config.log_every == 0:
                stats = {name: value for name, value in self.blocker.stats.items() if name != "step"}
                self._log({"step": position, "epoch": epoch, "loss": loss.item(), **stats})
            on_step(position)
        self.records.merge(accelerator)
        counts["waiting_seconds"] = batches.seconds()
        counts["train_seconds"] = time.perf_counter() - begin
        counts["train_cpu_seconds"] = time.process_time() - cpu_begin
        train_loss = float(accelerator.reduce(loss_sum, "mean")) / max(1, epoch_steps)
        if not math.isfinite(train_loss):
            raise RunError(
                f"the training loss became {train_loss} in epoch {epoch + 1}. Lower --lr (now {config.lr}); the state "
                f"before this epoch is kept in {config.out}"
            )
        for name, value in counts.items():
            self.totals[name] += value
        metrics: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * self.steps_per_epoch,
            "train_loss": train_loss,
            "lr": self.lr_schedule.get_last_lr()[0],
            "pruned_share": 1 - counts["trained_samples"] / (self.steps_per_epoch * self.batch_samples),
            "train_seconds": counts["train_seconds"],
            "waiting_share": counts["waiting_seconds"] / counts["train_seconds"],
        }
        if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
            metrics |= self.evaluate(self.model, self.test_loader, "test")
            if self.averaged is not None:
                metrics |= self.evaluate(self.averaged, self.test_loader, "ema_test")
        return metrics

    def step(self, batch: Batch) -> tuple[Tensor, int, int, int]:
        """Learn from one batch, and take a step of the optimizer at the last of those whose
        gradients are averaged.

        Returns:
            The loss, and how many samples were loaded, trained on, and forwarded only to choose.
        """
        config, blocker = self.config, self.blocker
        x, label, index = self.source.prepare_train(batch["input"]), batch["label"], batch["index"]
        if config.channels_last:
            x = x.to(memory_format=torch.channels_last)
        if isinstance(self.criterion_at_cut, PerClass):
            self.criterion_at_cut.see(label)
        x, label = mix(x, label, config.mix, len(self.source.classes))
        if self.originals is not None:
            self.originals.show(self.source.original(batch))
        share = self.schedule.share(self.lr_schedule.last_epoch, self.cycle_steps)
        chosen = self.method.choose(self.model, self._losses, x, label, share)
        if chosen is not None:
            x, label, index = x[chosen], label[chosen], index[chosen]
        output = self.model(x)
        losses = self._losses(output, blocker.select(label))  # pfb, line 2
        if config.reweight and config.method == "inverse-density":
            losses = losses * blocker.weights
        loss = self.method.reduce(losses, blocker.select(index))
        self.accelerator.backward(loss)
        self._record(batch["index"])
        if self.accelerator.sync_gradients:
            if config.clip is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            blocker.step()  # pfb, line 3
            if self.averaged is not None:
                self.averaged.update_parameters(self.plain_model)
        loaded = len(batch["index"])
        return loss.detach(), loaded, len(losses), 0 if chosen is None else loaded

    def evaluate(self, model: nn.Module, loader: Any, name: str) -> dict[str, float]:
        """Loss, accuracy and what else the task is judged by, all named ``{name}_...``."""
        with self.bars.task(name, len(loader)) as on_batch:
            found = evaluate(model, loader, self.source, self.config.label_smoothing, self.accelerator, on_batch)
        return {f"{name}_{what}": value for what, value in found.items()}

    def finish(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Look at what was learned and what it cost, and write the summary."""
        config, accelerator = self.config, self.accelerator
        if accelerator.is_main_process:
            self.folder.write_records(self.records, labels_of(self.source.train), self.source.names)
            self.folder.write_weights(WEIGHTS, self.plain_model)
            if self.averaged is not None:
                self.folder.write_weights(AVERAGE, self.averaged.module)
        with self.bars.shown():
            learned = self.evaluate(self.model, self.learned_loader, "train")
        summary = {
            "config": json.loads(config.to_json()),
            "versions": versions(),
            "device": device_name(accelerator.device),
            "processes": accelerator.num_processes,
            "task": self.source.task,
            "cut": self.blocker.cut if self.blocks else None,
            "full_samples": self.total_steps * self.batch_samples,
            "classes": self.source.classes,
            **metrics,
            **{f"best_{name}": value for name, value in self.best.items()},
            "train_accuracy": learned["train_accuracy"],
            **self.totals,
        }
        summary["compute"] = compute_of(summary, self.plain_model, self.two_samples())
        summary |= measure_full_cost(
            self.plain_model, self.blocker, self.source, config, accelerator, self.totals, self.total_steps
        )
        summary["peak_memory_bytes"] = peak_memory(accelerator.device)
        if accelerator.is_main_process:
            self.folder.write_summary(summary)
            show(render(summary))
        accelerator.end_training()
        return summary

    def say_what(self, asked: TrainConfig) -> None:
        """What is about to be trained, and which of the settings asked for change nothing."""
        cut = self.blocker.cut if self.blocks else None
        loaded = self.steps_per_epoch * self.batch_samples
        self.say(headline(self.config, self.source, self.plain_model, self.accelerator.device, cut, loaded))
        if unused := idle(asked):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
            self.say(f"{flags}: without effect on this run (--method {self.config.method}, see pfb train --help)")

    def say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            console.print(text, highlight=False)

    def _log(self, values: dict[str, float]) -> None:
        """One line in the run's log, and points for the tracker."""
        if self.accelerator.is_main_process:
            self.folder.log(values)
            tracking.log(self.accelerator, values)

    def _losses(self, output: Any, label: Tensor) -> Tensor:
        return task.losses(task.logits_of(output, label), label, self.config.label_smoothing)

    def _record(self, index: Tensor) -> None:
        selection = self.blocker.selection
        if selection is not None:
            self.records.add(index, selection.select(index), self.blocker.last_log_density)


def _finished(config: TrainConfig) -> dict[str, Any] | None:
    """The summary of a run that is finished already, which it shows again; ``None`` for others."""
    summary = RunFolder(config.out).summary_of(config)
    if summary is not None and os.environ.get("RANK", "0") == "0":
        console.print(f"{config.out} is finished already; nothing was changed", highlight=False)
        show(render(summary))
    return summary
