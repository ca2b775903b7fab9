"""All settings of a run, in one frozen dataclass; the command line is derived from it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pfb
from pfb.lab.errors import RunError

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("epochs", "batch_size", "log_every", "eval_every", "train_samples", "image_size"),
        (lambda n: n >= 1, "at least 1"),
    ),
    "workers": (lambda n: n >= 0, "at least 0"),
    "seed": (lambda n: 0 <= n < 2**32, "a whole number in [0, 2^32)"),
    "gamma": (math.isfinite, "a finite number"),
    "memory": (lambda n: n >= 2, "at least 2"),
    "skip": (lambda share: 0 <= share < 1, "a share in [0, 1)"),
    "ema": (lambda decay: 0 < decay < 1, "a decay in (0, 1)"),
    "lr": (lambda rate: 0 < rate < math.inf, "positive and finite"),
    "momentum": (lambda share: 0 <= share < 1, "in [0, 1)"),
    "weight_decay": (lambda decay: 0 <= decay < math.inf, "at least 0 and finite"),
    "label_smoothing": (lambda share: 0 <= share < 1, "a share in [0, 1)"),
    "scoring_scale": (lambda scale: 0 < scale <= 1, "a part of the images' resolution in (0, 1]"),
}
"""What a setting must be, if it is not ``None``; NaN passes none."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a model with Partial Forward Blocking, a method to compare with, or on full data."""

    data: str = "digits"
    """digits; digit-clips (some of them as clips of near-equal frames); cifar10, cifar100,
    imagefolder:PATH with train/ and test/ (or val/) inside; shapes (generated pictures, to be
    segmented); text (documentation of Python's standard library, to be continued byte by byte).
    """
    data_root: Path = Path("data")
    """Where cifar10 and cifar100 lie or are downloaded to."""
    model: str = ""
    """A classifier of torchvision by its name there; timm:NAME; or cifar-resnet8, 14, 20, ... (6 n
    + 2 layers), the ResNets of He et al. for CIFAR. A ResNet of torchvision gets the CIFAR stem for
    images of at most 64 pixels: a 3x3 convolution of stride 1 and no max-pool. For shapes: a
    segmentation model of torchvision, or segformer (0.7 M parameters, narrower than SegFormer-B0).
    For text: gpt (GPT-2's architecture, 6 layers of width 96). By default cifar-resnet8, segformer
    or gpt, as the data asks.
    """
    method: Literal[
        "inverse-density",
        "pfb",
        "tempered",
        "stratified",
        "uniform",
        "full",
        "release",
        "infobatch",
        "orderdp",
        "selective-backprop",
    ] = "inverse-density"
    """What decides which samples are stopped. inverse-density: samples are drawn, those seldom that
    are like one seen lately; pfb: the paper's importance; tempered and stratified: softer forms of
    the paper's. uniform: random samples are stopped, the baseline to beat. full: none is. release:
    as in the code that the paper's authors published. infobatch, orderdp, selective-backprop:
    published methods to compare with, which stop nothing at the cut.
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
    shallow: Literal["reuse", "recompute"] = "recompute"
    """recompute: the kept samples run from the input, after a pass without graph where they are
    judged by the cut's features. reuse: one shallow pass, as in the paper.
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
    gamma: float | None = None
    """inverse-density: how strongly copies are left out, by default 4. tempered: how strongly rare
    samples are favoured, by default 0.5; negative favours dense ones.
    """
    features: Literal["cut", "cut-spread", "momentum", "sketch"] | None = None
    """What samples are judged by. cut: averages of the cut's output (the paper). cut-spread: and
    standard deviations. momentum: both under a moving average of the shallow weights (recompute).
    sketch: fixed features of the input, without any scoring pass. By default sketch for
    inverse-density, cut for all others.
    """
    memory: int | None = None
    """Number of samples whose features are remembered, in place of centers; at most a third of an
    epoch. By default 4,096 or a third of an epoch for inverse-density, none for all others.
    """
    per_class: bool = False
    """Apply the importance within each class, so that all classes keep the same share."""
    n_centers: int = 64
    """Centers of the density estimate."""
    beta: float = 0.01
    """How far a center moves per step."""
    epochs: int = 20
    """Passes over the training set."""
    batch_size: int = 128
    """Samples per step and process."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: momentum without Nesterov's step. adamw: no decay of norms and biases."""
    lr: float = 0.05
    """Peak learning rate."""
    lr_schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    """onecycle: div 25, final div 1e4, 30 % warm-up. cosine: to 0 after 5 % linear warm-up."""
    momentum: float = 0.9
    """Momentum of SGD, beta1 of AdamW; with onecycle the middle of a cycle of 0.05 to either side.
    """
    weight_decay: float = 5e-4
    """Decay of all weights with sgd, of the matrices with adamw."""
    label_smoothing: float = 0.1
    """Share of the label that is spread over all classes, in training and test loss."""
    augment: bool = True
    """Small images: shift by up to an eighth of the side (reflected) and flip; digits are not
    flipped. Large ones: random resized crop and flip. Shapes and text are left as they are.
    """
    mix: Literal["none", "mixup", "cutmix", "both"] = "none"
    """Mix pairs of images and their labels: mixup (alpha 0.8), cutmix (alpha 1), or one of the two
    for each batch.
    """
    ema: float | None = None
    """Decay of a moving average of the weights, which is evaluated beside them; 0.999 is usual."""
    image_size: int | None = None
    """Side of an image folder's images; by default that of its first image if at most 64, else 224.
    Up to 64 an image is resized to a square, above it is resized and cropped.
    """
    train_samples: int | None = None
    """Train on so many samples only, equally many of every class; of shapes, draw so many."""
    seed: int = 0
    """Decides weights, order and augmentation."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision, as Accelerate names it."""
    channels_last: bool = False
    """Keep images as [N, H, W, C] in memory, which many convolutions run faster on."""
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
        if not self.model:
            object.__setattr__(self, "model", default_model(self.data))
        if self.features is None:
            object.__setattr__(self, "features", default_features(self.method))
        for name, (allowed, what) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not allowed(value):
                raise RunError(f"--{name.replace('_', '-')} must be {what} (got {value})")
        if self.image_size is not None and not self.data.startswith("imagefolder:"):
            raise RunError(f"--image-size is for image folders (got --data {self.data}); leave it out")
        try:
            self.schedule()
            pfb.RareFirst(self.alpha)
            pfb.DensityEstimator(self.n_centers, self.beta)
            if self.method == "inverse-density":
                pfb.InverseDensity(4.0 if self.gamma is None else self.gamma)
        except ValueError as error:
            raise in_flags(error) from error

    def schedule(self) -> pfb.Schedule:
        """The pruned share over training."""
        return pfb.window(self.prune, start=self.start, stop=self.stop, ramp=self.ramp)

    def changed(self) -> list[str]:
        """Names of the settings that differ from their defaults."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)} | {
            "model": default_model(self.data),
            "features": default_features(self.method),
        }
        return [name for name, default in defaults.items() if getattr(self, name) != default]

    def moved_to(self, run: Path) -> TrainConfig:
        """The same settings for a run whose folder was moved."""
        return dataclasses.replace(self, out=run)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, default=str)

    @classmethod
    def from_file(cls, path: Path) -> TrainConfig:
        """The settings of :func:`settings_in`; those that the file does not name keep their
        defaults.
        """
        return cls(**settings_in(path))

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Read back what :meth:`to_json` wrote; raises ``RunError`` for anything else."""
        try:
            settings = _settings(json.loads(text), "it")
            if "out" not in settings:
                raise RunError("it names no folder")
            return cls(**settings)
        except (ValueError, RunError) as error:
            raise RunError(f"the run's config.json was not written by this version of pfb train ({error})") from error


def settings_in(path: Path) -> dict[str, Any]:
    """Settings that a .toml or .json file names, as arguments of :class:`TrainConfig`.

    Raises:
        RunError: no such file, not readable as its ending says, or a name or type that is no
            setting's.
    """
    try:
        text = path.read_text()
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise RunError(f"--config {path} cannot be read ({error})") from error
    return _settings(values, f"--config {path}")


def default_model(data: str) -> str:
    """The model for data that come without ``--model``: of their task, and small."""
    return {"shapes": "segformer", "text": "gpt"}.get(data, "cifar-resnet8")


def default_features(method: str) -> str:
    """The features of a method that come without ``--features``."""
    return "sketch" if method == "inverse-density" else "cut"


ALIASES = {"scale": "scoring_scale"}
"""Arguments of the library whose flag has another name."""


def in_flags(error: Exception) -> RunError:
    """An error of the library as the command line says it: `name` of a setting is its flag there.

    Example:
        >>> str(in_flags(ValueError("pass `channel_dim=1`, or another `cut=`, to `pfb.attach`")))
        'pass --channel-dim 1, or another --cut, to `pfb.attach`'
    """
    settings = {f.name for f in dataclasses.fields(TrainConfig)}

    def flag(code: re.Match[str]) -> str:
        name, value = ALIASES.get(code[1], code[1]), code[2] or ""
        return f"--{name.replace('_', '-')} {value}".strip() if name in settings else code[0]

    return RunError(re.sub(r"`(\w+)(?:=([^`]*))?`", flag, str(error)))


def _settings(values: Any, origin: str) -> dict[str, Any]:
    """Values read from a file as arguments of :class:`TrainConfig`; raises ``RunError`` where one
    is none.
    """
    if not isinstance(values, dict):
        raise RunError(f"{origin} must hold names and values (got a {type(values).__name__})")
    hints = get_type_hints(TrainConfig)
    settings = {name.replace("-", "_"): value for name, value in values.items()}
    if unknown := sorted(settings.keys() - hints.keys()):
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RunError(f"{origin}: {', '.join(map(repr, unknown))} is no setting.{hint}")
    for name, value in settings.items():
        hint = hints[name]
        if not _fits(value, hint):
            wanted = str(hint if get_args(hint) else hint.__name__).replace("typing.", "")
            raise RunError(f"{origin}: {name} must be {wanted} (got {value!r})")
    return {name: Path(value) if hints[name] is Path else value for name, value in settings.items()}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from a file is of a setting's type; whole numbers may stand for any
    number, text for a path.
    """
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_args(hint):  # a type or None
        return any(_fits(value, part) for part in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    accepted: dict[Any, Any] = {float: (int, float), Path: str}
    return isinstance(value, accepted.get(hint, hint))


def without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings for a published result: what decided it, and no folder of the machine it ran
    on.
    """
    kept = {name: value for name, value in settings.items() if name not in ("out", "data_root", "overwrite")}
    if kept["data"].startswith("imagefolder:"):
        kept["data"] = f"imagefolder:{Path(kept['data'].removeprefix('imagefolder:')).name}"
    return kept
