"""All settings of a run, in one frozen dataclass; the command line is derived from it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pfb
from pfb.lab.errors import RunError


@dataclass(frozen=True)
class TrainConfig:
    """Train a model with Partial Forward Blocking, a method to compare with, or on full data."""

    data: str = "digits"
    """digits, cifar10, cifar100, imagefolder:PATH with train/ and test/ (or val/) inside; shapes
    (generated pictures, to be segmented); text (documentation of Python's standard library, to be
    continued).
    """
    data_root: Path = Path("data")
    """Where cifar10 and cifar100 lie or are downloaded to."""
    model: str = "cifar-resnet8"
    """cifar-resnet8, cifar-resnet14, ... (CIFAR kind), any torchvision classifier, or timm:NAME. For
    shapes: a segmentation model of torchvision, or segformer. For text: gpt.
    """
    method: Literal[
        "pfb",
        "tempered",
        "stratified",
        "uniform",
        "full",
        "release",
        "infobatch",
        "orderdp",
        "selective-backprop",
    ] = "pfb"
    """pfb: the paper's criterion; tempered and stratified: softer ones, see pfb.importance.
    uniform: stop random samples, the baseline to beat. full: stop none. The others are published
    methods to compare with, see pfb.lab.baselines.
    """
    cut: str | None = None
    """Layer after which samples are stopped; by default the first stage."""
    channel_dim: int | None = None
    """Dimension of the cut's output that holds the channels, where it cannot be told: 1 for [N, C,
    H, W], -1 for [N, T, C].
    """
    prune: float = 0.4
    """Share of every batch that is stopped, in [0, 1)."""
    skip: float = 0.0
    """Second level: share of the samples that an epoch does not even load while pruning is on,
    drawn anew for each.
    """
    shallow: Literal["reuse", "recompute"] = "reuse"
    """reuse: one shallow pass, as in the paper. recompute: score without graph, then run the kept
    samples.
    """
    batchnorm: Literal["running", "batch"] = "running"
    """recompute: statistics that BatchNorms use in the scoring pass."""
    scoring_scale: float = 1.0
    """recompute: resolution of the scoring pass, as a part of the images'."""
    start: float = 0.05
    """Share of training before pruning starts."""
    stop: float = 0.875
    """Share of training after which all samples train again."""
    ramp: int = 0
    """Number of levels over which the share grows in the first half of the window."""
    alpha: float = 0.01
    """Upper end of the random term, as a share of the batch's largest density."""
    gamma: float = 0.5
    """tempered: how strongly rare samples are favoured; negative favours dense ones."""
    per_class: bool = False
    """Apply the criterion within each class, so that all classes keep the same share."""
    n_centers: int = 64
    """Centers of the density estimate."""
    beta: float = 0.01
    """How far a center moves per step."""
    epochs: int = 20
    batch_size: int = 128
    """Samples per step and process."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    """Peak learning rate."""
    lr_schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    """onecycle: div 25, final div 1e4, 30 % warm-up. cosine: to 0 after 5 % linear warm-up."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    augment: bool = True
    """Flip and 4-pixel reflect crop for small images; random resized crop and flip for large ones.
    """
    mix: Literal["none", "mixup", "cutmix", "both"] = "none"
    """Mix pairs of images and their labels: mixup (alpha 0.8), cutmix (alpha 1), or one of the two
    for each batch.
    """
    ema: float | None = None
    """Decay of a moving average of the weights, which is evaluated beside them; 0.999 is usual."""
    image_size: int | None = None
    """Side to which an image folder is resized; by default that of its first image if at most 64,
    else 224.
    """
    train_samples: int | None = None
    """Train on so many samples only, equally many of every class."""
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    workers: int = 2
    """Loader processes for images too large to be kept in memory."""
    log_every: int = 50
    """Steps between two lines of the step log."""
    eval_every: int = 1
    """Epochs between two evaluations on the test set; the last epoch is always evaluated."""
    cpu: bool = False
    """Stay on the CPU even if there is a GPU."""
    out: Path = Path("runs/run")
    """Folder of the run: configuration, log, checkpoint, summary."""
    overwrite: bool = False
    """Replace the run that is in --out already."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "log_every", "eval_every"):
            if getattr(self, name) < 1:
                raise RunError(f"--{name.replace('_', '-')} must be at least 1 (got {getattr(self, name)})")
        if self.train_samples is not None and self.train_samples < 1:
            raise RunError(f"--train-samples must be at least 1 (got {self.train_samples})")
        if not 0 <= self.skip < 1:
            raise RunError(f"--skip must be a share in [0, 1) (got {self.skip})")
        if self.ema is not None and not 0 < self.ema < 1:
            raise RunError(f"--ema must be a decay in (0, 1) (got {self.ema})")
        if self.lr <= 0:
            raise RunError(f"--lr must be positive (got {self.lr})")
        if not math.isfinite(self.gamma):
            raise RunError(f"--gamma must be a finite number (got {self.gamma})")
        try:
            self.schedule()
            pfb.RareFirst(self.alpha)
            pfb.DensityEstimator(self.n_centers, self.beta)
        except ValueError as error:
            raise RunError(str(error)) from error

    def schedule(self) -> pfb.Schedule:
        """The pruned share over training."""
        return pfb.window(self.prune, start=self.start, stop=self.stop, ramp=self.ramp)

    def changed(self) -> list[str]:
        """Names of the settings that differ from their defaults."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]

    def moved_to(self, run: Path) -> TrainConfig:
        """The same settings for a run whose folder was moved."""
        return dataclasses.replace(self, out=run)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, default=str)

    @classmethod
    def from_file(cls, path: Path) -> TrainConfig:
        """Read settings from a .toml or .json file that names some of them; the others keep their
        defaults.

        Raises:
            RunError: no such file, not readable as its ending says, or a name or value that is no
                setting.
        """
        try:
            text = path.read_text()
            values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except (OSError, ValueError) as error:
            raise RunError(f"--config {path} cannot be read ({error})") from error
        if not isinstance(values, dict):
            raise RunError(f"--config {path} must hold names and values (got a {type(values).__name__})")
        known = {f.name for f in dataclasses.fields(cls)}
        settings = {name.replace("-", "_"): value for name, value in values.items()}
        if unknown := sorted(settings.keys() - known):
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise RunError(f"--config {path}: {', '.join(map(repr, unknown))} is no setting.{hint}")
        for name in settings.keys() & {"data_root", "out"}:
            settings[name] = Path(settings[name])
        hints = get_type_hints(cls)
        for name, value in settings.items():
            if not _fits(value, hints[name]):
                wanted = str(hints[name] if get_args(hints[name]) else hints[name].__name__).replace("typing.", "")
                raise RunError(f"--config {path}: {name} must be {wanted} (got {value!r})")
        return cls(**settings)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Read back what :meth:`to_json` wrote; raises ``RunError`` for anything else."""
        try:
            values: dict[str, Any] = json.loads(text)
            for name in ("data_root", "out"):
                values[name] = Path(values[name])
            return cls(**values)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RunError(f"the run's config.json was not written by this version of pfb train ({error})") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from a file is of a setting's type; whole numbers may stand for any
    number.
    """
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_args(hint):  # a type or None
        return any(_fits(value, part) for part in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings for a published result: what decided it, and no folder of the machine it ran
    on.
    """
    kept = {name: value for name, value in settings.items() if name not in ("out", "data_root", "overwrite")}
    if kept["data"].startswith("imagefolder:"):
        kept["data"] = f"imagefolder:{Path(kept['data'].removeprefix('imagefolder:')).name}"
    return kept
