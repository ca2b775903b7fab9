"""The training loop: an ordinary one, with pfb's lines marked."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pfb.lab.errors import RunError
from pfb.lab.train import compiling, task
from pfb.lab.train.batches.augment import mix
from pfb.lab.train.batches.loaders import Waiting
from pfb.lab.train.data import Batch, Source, labels_of
from pfb.lab.train.evaluation import evaluate
from pfb.lab.train.methods import paused, unused
from pfb.lab.train.nets import optim
from pfb.lab.train.options.config import TrainConfig
from pfb.lab.train.output import checkpoint, tracking
from pfb.lab.train.output.folder import AVERAGE, BEST, WEIGHTS, RunFolder
from pfb.lab.train.output.summary import render, summary_of
from pfb.lab.train.setup import TOTALS, Setup
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
    training = Training(dataclasses.replace(config, start=0.0, stop=1.0, ramp=0, accumulate=1, fill=False))
    training.sampler.set_epoch(0)
    training.model.train()
    with compiling.in_one_line(config):
        with paused(training.pruner, training.blocker):
            training.step(training.prune(next(iter(training.train_loader))))
        batch = next(iter(training.train_loader))
        trained = training.step(training.prune(batch))[1]
        training.evaluate(training.model, [next(iter(training.test_loader))], "test")
    training.say_what(config)
    training.say(
        f"{training.length.per_epoch} steps in each of {config.epochs} epochs. A full step, one on {trained} of "
        f"{len(batch['index'])} samples and an evaluation went well; nothing was written"
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
        begun, whole = first_epoch * self.length.per_epoch, config.epochs * self.length.per_epoch
        with self.bars.shown(), self.bars.task("train", whole, begun) as on_step:
            self.budget.epochs_begin()
            for epoch in range(first_epoch, config.epochs):
                if not self.budget.allows_another():
                    self._stop(epoch)
                    break
                metrics = self.epoch(epoch, on_step) | self._tested(epoch)
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
        if done == config.extended_from > 0:  # learning rate and window begin anew; what is known of densities stays
            self.lr_schedule = optim.schedule_anew(self.plain_optimizer, config, self.length.cycle)
            for tool in (self.pruner, self.blocker):
                if tool is not None:
                    tool.load_state_dict({**tool.state_dict(), "step": 0})
            self.say(
                f"{done} epochs are done. Epochs {done + 1} to {config.epochs} are a cycle of their own: the learning "
                f"rate ({config.lr_schedule}, peak {config.lr}) and the window of pruning begin anew"
            )
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
        """Train on one epoch; returns its metrics."""
        config, accelerator, per_epoch = self.config, self.accelerator, self.length.per_epoch
        self.train_loader.set_epoch(epoch)
        self.sampler.set_epoch(epoch)  # whatever the loader wraps it in
        share = config.schedule().share(epoch - config.extended_from, config.epochs - config.extended_from)
        self.sampler.only = self.loop.load(share, self.sampler.random_numbers(purpose=1))
        self.counts = dict.fromkeys(TOTALS, 0)
        loss_sum = torch.zeros((), device=accelerator.device)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        batches = Waiting(self.train_loader, accelerator.device)
        loads = len(self.train_loader)
        self.model.train()
        for loaded, batch in self.batches(batches):
            with accelerator.accumulate(self.model):
                loss, trained, scored = self.step(batch)
            # Methods that load or train on fewer samples take fewer steps, and the learning rate
            # arrives with the others'.
            position = epoch * per_epoch + round(loaded * per_epoch / loads)
            while accelerator.sync_gradients and self.lr_schedule.last_epoch < position - self.length.before:
                self.lr_schedule.step()
            loss_sum += loss
            self.counts["steps"] += 1
            self.counts["trained_samples"] += trained * accelerator.num_processes
            self.counts["deep_samples"] += (trained + scored) * accelerator.num_processes
            if accelerator.sync_gradients and (self.totals["steps"] + self.counts["steps"]) % config.log_every == 0:
                self._log({"step": position, "epoch": epoch, "loss": loss.item(), **self._stats()})
            on_step(position)
        self.records.merge(accelerator)
        self.counts["waiting_seconds"] = batches.seconds()
        self.counts["train_seconds"] = time.perf_counter() - begin
        self.counts["train_cpu_seconds"] = time.process_time() - cpu_begin
        return self._metrics(epoch, float(accelerator.reduce(loss_sum, "mean")))

    def batches(self, loads: Any) -> Iterator[tuple[int, Batch]]:
        """What is trained on in an epoch, and how many batches were loaded for it so far."""
        for loaded, batch in enumerate(loads, start=1):
            self.counts["samples"] += len(batch["index"]) * self.accelerator.num_processes
            kept = self.prune(batch)
            if self.pool is None:
                yield loaded, kept
            else:
                for full in self.pool.add(kept, len(kept["index"]), len(batch["index"])):
                    yield loaded, full

    def prune(self, batch: Batch) -> Batch:
        """A batch, without what is left out before the model."""
        if self.pruner is None:
            return batch
        kept: Batch = self.pruner(batch, by=self.method.by(self.source, batch))  # pfb, before the model
        if self.pruner.selection is not None:
            self._record(batch["index"], kept["index"])
        return kept

    def step(self, batch: Batch) -> tuple[Tensor, int, int]:
        """Learn from one batch, and take a step of the optimizer at the last of those whose
        gradients are averaged.

        Returns:
            The loss, and how many samples were trained on, and forwarded only to choose.
        """
        config, blocker = self.config, self.blocker
        x, label, index = self.source.prepare_train(batch["input"]), batch["label"], batch["index"]
        if config.channels_last:
            x = x.to(memory_format=torch.channels_last)
        x, label = mix(x, label, config.mix, len(self.source.classes))
        share = config.schedule().share(self.lr_schedule.last_epoch, self.length.cycle)
        chosen = self.loop.choose(self.model, self._losses, x, label, share)
        if chosen is not None:
            x, label, index = x[chosen], label[chosen], index[chosen]
        output = self.model(x)
        if blocker is not None:
            label, index = blocker.select(label, index)  # pfb, inside the model
            if blocker.selection is not None:
                self._record(batch["index"], index, blocker.last_log_density)
        losses = self._losses(output, label)
        loss = self.loop.reduce(losses, index)
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            if config.clip is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if blocker is not None:
                blocker.step()  # pfb, inside the model
            if self.averaged is not None:
                self.averaged.update_parameters(self.plain_model)
        return loss.detach(), len(losses), 0 if chosen is None else len(batch["index"])

    def _record(self, index: Tensor, kept: Tensor, log_density: Tensor | None = None) -> None:
        """Note which samples of a pruned batch were kept."""
        self.records.add(index, kept, log_density)
        self.counts["pruned_steps"] += len(kept) < len(index)

    def _metrics(self, epoch: int, loss_sum: float) -> dict[str, Any]:
        """What an epoch came to; its counts join the run's."""
        counts, steps = self.counts, self.counts["steps"]
        train_loss = loss_sum / max(1, steps)
        if not math.isfinite(train_loss):
            raise RunError(
                f"the training loss became {train_loss} in epoch {epoch + 1}. Lower --lr (now {self.config.lr}); the "
                f"state before this epoch is kept in {self.config.out}"
            )
        for name, value in counts.items():
            self.totals[name] += value
        return {
            "epoch": epoch + 1,
            "step": (epoch + 1) * self.length.per_epoch,
            "train_loss": train_loss,
            "lr": self.lr_schedule.get_last_lr()[0],
            "pruned_share": 1 - counts["trained_samples"] / (self.length.per_epoch * self.length.samples),
            "train_seconds": counts["train_seconds"],
            "waiting_share": counts["waiting_seconds"] / counts["train_seconds"],
        }

    def _tested(self, epoch: int) -> dict[str, float]:
        """How the model does on the test set after an epoch, if it is looked at."""
        if (epoch + 1) % self.config.eval_every and epoch + 1 < self.config.epochs:
            return {}
        metrics = self.evaluate(self.model, self.test_loader, "test")
        if self.averaged is not None:
            metrics |= self.evaluate(self.averaged, self.test_loader, "ema_test")
        return metrics

    def _stats(self) -> dict[str, float]:
        """Numbers of what prunes, for the log."""
        tool = self.blocker if self.pruner is None else self.pruner
        stats = {} if tool is None else tool.stats
        return {name: value for name, value in stats.items() if name != "step" and isinstance(value, float)}

    def evaluate(self, model: nn.Module, loader: Any, name: str) -> dict[str, float]:
        """Loss, accuracy and what else the task is judged by, all named ``{name}_...``."""
        with self.bars.task(name, len(loader)) as on_batch:
            found = evaluate(model, loader, self.source, self.config.label_smoothing, self.accelerator, on_batch)
        return {f"{name}_{what}": value for what, value in found.items()}

    def finish(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Look at what was learned and what it cost, and write the summary."""
        accelerator = self.accelerator
        if accelerator.is_main_process:
            self.folder.write_records(self.records, labels_of(self.source.train), self.source.names)
            self.folder.write_weights(WEIGHTS, self.plain_model)
            if self.averaged is not None:
                self.folder.write_weights(AVERAGE, self.averaged.module)
        with self.bars.shown():
            learned = self.evaluate(self.model, self.learned_loader, "train")
        summary = summary_of(self, metrics | {"train_accuracy": learned["train_accuracy"]})
        if accelerator.is_main_process:
            self.folder.write_summary(summary)
            show(render(summary))
        accelerator.end_training()
        return summary

    def say_what(self, asked: TrainConfig) -> None:
        """What is about to be trained, and which of the settings asked for change nothing."""
        loaded = self.length.per_epoch * self.length.samples
        self.say(headline(self.config, self.source, self.plain_model, self.accelerator.device, loaded))
        self.say(f"{self.config.method}: {self.method.described(self.config.prune, self.cut)}")
        if names := unused(asked):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in names)
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


def _finished(config: TrainConfig) -> dict[str, Any] | None:
    """The summary of a run that is finished already, which it shows again; ``None`` for others."""
    summary = RunFolder(config.out).summary_of(config)
    if summary is not None and os.environ.get("RANK", "0") == "0":
        console.print(f"{config.out} is finished already; nothing was changed", highlight=False)
        show(render(summary))
    return summary
