"""Everything that a run is made of, built and checked before it begins."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pfb.lab.errors import RunError
from pfb.lab.train import methods
from pfb.lab.train.batches.loaders import length, loaders
from pfb.lab.train.budget import Budget
from pfb.lab.train.data import EpochSampler, Source, load
from pfb.lab.train.evaluation import averaged
from pfb.lab.train.nets import optim
from pfb.lab.train.nets.models import build_for
from pfb.lab.train.options.config import TrainConfig
from pfb.lab.train.output import checkpoint, tracking
from pfb.lab.train.output.folder import RunFolder
from pfb.lab.train.output.random_states import RandomStates
from pfb.lab.train.output.records import Records
from pfb.lab.train.terminal import Bars, console
from pfb.pruning.filling import Pool

TIMES = ("train_seconds", "train_cpu_seconds", "waiting_seconds")
TOTALS = (*TIMES, "steps", "pruned_steps", "samples", "deep_samples", "trained_samples")
"""What a run adds up: seconds; samples loaded, sent through the deep part, and trained on."""


class Length(NamedTuple):
    """How long a run is, in batches as they are loaded.

    Attributes:
        per_epoch: batches of an epoch.
        before: batches before the cycle that this is: 0, but for a run that was given more epochs.
        cycle: batches of the cycle.
        samples: of a batch, of all processes together.
    """

    per_epoch: int
    before: int
    cycle: int
    samples: int


class Setup:
    """The parts of a run.

    Raises:
        RunError: settings, data or model that cannot be right.
    """

    def __init__(self, config: TrainConfig, source: Source | None = None, resume: bool = False) -> None:
        self.config = config
        self.method = methods.method_of(config.method)
        self.method.check(config)
        self.accelerator = _accelerator(config)
        self.budget = Budget(config.minutes, self.accelerator)
        self.bars = Bars(console, self.accelerator.is_main_process)
        self.folder = RunFolder(config.out)
        self.origin = checkpoint.origin(config, self.accelerator.num_processes)
        set_seed(config.seed)
        self.source = load(config) if source is None else source
        self._load_batches()
        self._build(config.pretrained and not resume)
        self.records = Records(length(self.source.train), self.accelerator.device)
        self.totals: dict[str, float] = dict.fromkeys(TOTALS, 0)
        self.counts: dict[str, float] = dict.fromkeys(TOTALS, 0)  # of this epoch
        self.best: dict[str, float] = {}
        self.out_of_time = False

    def _load_batches(self) -> None:
        config, source, samples = self.config, self.source, length(self.source.train)
        if source.task != "classification" and config.mix != "none":
            raise RunError(f"--mix is for classes of whole images (got --data {config.data}); leave it out")
        self.sampler = EpochSampler(samples, config.seed, config.repeats)
        loads = loaders(source, config, self.sampler)
        if len(loads[0]) == 0:
            raise RunError(f"--batch-size {config.batch_size} is larger than the training set of {samples} samples")
        self.train_loader, self.test_loader, self.learned_loader = self.accelerator.prepare(*loads)
        epoch, before = len(self.train_loader), config.extended_from
        processes = self.accelerator.num_processes
        self.length = Length(epoch, epoch * before, epoch * (config.epochs - before), config.batch_size * processes)

    def _build(self, pretrained: bool) -> None:
        """Model, method and optimizer, in the order that PyTorch's wrappers ask for."""
        config, accelerator, samples = self.config, self.accelerator, length(self.source.train)
        with accelerator.local_main_process_first():  # who downloads, if anybody
            model = build_for(self.source, config.model, pretrained)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.plain_model: nn.Module = model
        epochs, share = config.epochs - config.extended_from, config.schedule()
        updates = epochs * -(-self.length.per_epoch // config.accumulate)  # an epoch's last one takes what is left
        self.loop = self.method.loop(samples, accelerator.device)
        processes = accelerator.num_processes
        if processes > 1 and self.loop.needs_one_process:
            raise RunError(f"--method {config.method} keeps its losses in one process (got {processes}); run it on one")
        if processes > 1 and config.fill:
            raise RunError(f"--fill holds samples back in one process (got {processes}); leave it out")
        self.pruner = self.method.pruner(config, model, share, self.length.cycle, samples)  # pfb, before the model
        self.blocker = self.method.attach(config, model, share, updates)  # pfb, inside the model
        self.pool = Pool(self.pruner.declared, self.pruner._lists) if self.pruner is not None and config.fill else None
        self.plain_optimizer = optim.optimizer(model, config)
        self.lr_schedule = optim.schedule(self.plain_optimizer, config, self.length.cycle)
        self.model = accelerator.prepare(model)
        # Accelerate's optimizer scales losses of fp16; else it only searches the disk each step.
        scales = accelerator.scaler is not None
        self.optimizer = accelerator.prepare(self.plain_optimizer) if scales else self.plain_optimizer
        methods.check(model, (self.pruner, self.blocker), self.two_samples(), config)
        if config.compile:
            torch._dynamo.reset()  # or code of a run before, of other hooks, would be run again
            self.model.compile()  # in place: names of weights stay
        self.averaged = None if config.ema is None else averaged(model, config.ema)

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds beside the model's weights."""
        parts = {
            "optimizer": self.optimizer,
            "lr_schedule": self.lr_schedule,
            "loss_scaler": self.accelerator.scaler,
            "pruner": self.pruner,
            "pool": self.pool,
            "blocker": self.blocker,
            "loop": self.loop,
            "records": self.records,
            "averaged": self.averaged,
            "random": RandomStates(self.accelerator),
        }
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def cut(self) -> str | None:
        """The layer whose output samples are judged by."""
        return getattr(self.blocker, "cut", None) or getattr(getattr(self.pruner, "features", None), "cut", None)

    def two_samples(self) -> Tensor:
        """The first two training samples as the model takes them, without augmentation."""
        batch = next(iter(DataLoader(self.source.train, batch_size=2, collate_fn=self.source.collate)))
        x = self.source.prepare_test(batch["input"].to(self.accelerator.device))
        return x.to(memory_format=torch.channels_last) if self.config.channels_last else x


def _accelerator(config: TrainConfig) -> Accelerator:
    accelerator = Accelerator(
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
        cpu=config.cpu,
        log_with=tracking.log_with(config),
        project_dir=str(config.out),
    )
    if (kind := accelerator.distributed_type) in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise RunError(f"pfb train keeps a whole model per process (got {kind} from accelerate's configuration)")
    return accelerator
