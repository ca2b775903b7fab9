"""Everything that a run is made of, built and checked before it begins."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader

from pfb.lab.baselines import Skip
from pfb.lab.errors import RunError
from pfb.lab.train import checkpoint, methods, optim, tracking
from pfb.lab.train.budget import Budget
from pfb.lab.train.config import TrainConfig
from pfb.lab.train.data import EpochSampler, Source, load
from pfb.lab.train.evaluation import averaged
from pfb.lab.train.folder import RunFolder
from pfb.lab.train.loaders import length, loaders
from pfb.lab.train.models import build_for
from pfb.lab.train.random_states import RandomStates
from pfb.lab.train.records import Records
from pfb.lab.train.terminal import Bars, console

TIMES = ("train_seconds", "train_cpu_seconds", "waiting_seconds")
TOTALS = (*TIMES, "steps", "pruned_steps", "samples", "deep_samples", "trained_samples")
"""What a run adds up: seconds; samples loaded, sent through the deep part, and trained on."""


class Setup:
    """The parts of a run.

    Raises:
        RunError: settings, data or model that cannot be right.
    """

    def __init__(self, config: TrainConfig, source: Source | None = None, resume: bool = False) -> None:
        self.config = config
        self.out_of_time = False
        self.accelerator = Accelerator(
            mixed_precision=config.precision,
            gradient_accumulation_steps=config.accumulate,
            cpu=config.cpu,
            log_with=tracking.log_with(config),
            project_dir=str(config.out),
        )
        self.budget = Budget(config.minutes, self.accelerator)
        self.bars = Bars(console, self.accelerator.is_main_process)
        if (kind := self.accelerator.distributed_type) in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise RunError(f"pfb train keeps a whole model per process (got {kind} from accelerate's configuration)")
        self.folder = RunFolder(config.out)
        self.origin = checkpoint.origin(config, self.accelerator.num_processes)
        set_seed(config.seed)
        self.source = load(config) if source is None else source
        _check_task(config, self.source)
        samples, processes = length(self.source.train), self.accelerator.num_processes
        self.sampler = EpochSampler(samples, config.seed)
        loads = loaders(self.source, config, self.sampler)
        if len(loads[0]) == 0:
            raise RunError(f"--batch-size {config.batch_size} is larger than the training set of {samples} samples")
        with self.accelerator.local_main_process_first():  # who downloads, if anybody
            model = build_for(self.source, config.model, config.pretrained and not resume)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.plain_model = model
        self.train_loader, self.test_loader, self.learned_loader = self.accelerator.prepare(*loads)
        self.steps_per_epoch = len(self.train_loader)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.cycle_epochs = config.epochs - config.extended_from
        self.steps_before = self.steps_per_epoch * config.extended_from
        self.cycle_steps = self.steps_per_epoch * self.cycle_epochs
        self.batch_samples = config.batch_size * processes
        self.schedule = config.schedule()
        self.criterion_at_cut = methods.importance(config)
        self.method = methods.method(config, samples, self.accelerator.device, processes)
        steps = self._steps_to_take()
        self.originals = methods.originals(config)
        self.blocker = methods.attach(  # pfb, line 1
            model, config, self.criterion_at_cut, steps, samples, self.originals
        )
        self.plain_optimizer = optim.optimizer(model, config)
        self.lr_schedule = optim.schedule(self.plain_optimizer, config, self.cycle_steps)
        scale = config.scoring_scale if config.shallow == "recompute" else 1.0
        blocker = self.blocker if self.blocks else None
        self.model = self.accelerator.prepare(model)
        # Accelerate's optimizer scales losses of fp16; else it only searches the disk each step.
        scales = self.accelerator.scaler is not None
        self.optimizer = self.accelerator.prepare(self.plain_optimizer) if scales else self.plain_optimizer
        methods.check(self.plain_model, blocker, self.two_samples(), scale, config.channel_dim, config.features)
        if config.compile:
            self.model.compile()  # in place: names of weights stay
        self.averaged = None if config.ema is None else averaged(self.plain_model, config.ema)
        self.records = Records(samples, self.accelerator.device)
        parts = {
            "optimizer": self.optimizer,
            "lr_schedule": self.lr_schedule,
            "loss_scaler": self.accelerator.scaler,
            "blocker": self.blocker,
            "method": self.method,
            "records": self.records,
            "averaged": self.averaged,
            "random": RandomStates(self.accelerator),
        }
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.totals: dict[str, float] = dict.fromkeys(TOTALS, 0)
        self.best: dict[str, float] = {}

    @property
    def blocks(self) -> bool:
        """Whether samples are stopped at the cut."""
        return self.criterion_at_cut is not None

    def two_samples(self) -> Tensor:
        """The first two training samples as the model takes them, without augmentation."""
        batch = next(iter(DataLoader(self.source.train, batch_size=2, collate_fn=self.source.collate)))
        x = self.source.prepare_test(batch["input"].to(self.accelerator.device))
        return x.to(memory_format=torch.channels_last) if self.config.channels_last else x

    def _steps_to_take(self) -> int:
        """Of the optimizer in all epochs, without those of samples that are not loaded: over
        these the blocker's window spans.
        """
        epochs, full = self.cycle_epochs, self._updates(self.steps_per_epoch)
        if not isinstance(self.method, Skip):
            return epochs * full
        fewer = self._updates(max(1, self.method.loaded // self.batch_samples))
        return sum(fewer if self.schedule.share(e, epochs) else full for e in range(epochs))

    def _updates(self, batches: int) -> int:
        """Steps of the optimizer in an epoch of so many batches, of which the last may take
        fewer.
        """
        return -(-batches // self.config.accumulate)


def _check_task(config: TrainConfig, source: Source) -> None:
    if source.task != "classification":
        for name, value, default in (("per-class", config.per_class, False), ("mix", config.mix, "none")):
            if value != default:
                raise RunError(f"--{name} is for classes of whole images (got --data {config.data}); leave it out")
