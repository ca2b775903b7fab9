"""All settings of a run, in one flat frozen dataclass: checked, and written and read as JSON."""

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

import tyro

import pfb
from pfb.lab import files
from pfb.lab.errors import RunError
from pfb.lab.train.options.settings import (
    DataSettings,
    ModelSettings,
    OptimisationSettings,
    PruningSettings,
    RunSettings,
)

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        (
            "epochs",
            "batch_size",
            "accumulate",
            "log_every",
            "eval_every",
            "train_samples",
            "image_size",
            "repeats",
            "feature_dim",
        ),
        (lambda n: n >= 1, "at least 1"),
    ),
    "workers": (lambda n: n >= 0, "at least 0"),
    "seed": (lambda n: 0 <= n < 2**32, "a whole number in [0, 2^32)"),
    "memory": (lambda n: n >= 2, "at least 2"),
    "ema": (lambda decay: 0 < decay < 1, "a decay in (0, 1)"),
    "minutes": (lambda minutes: 0 < minutes < math.inf, "positive and finite"),
    "clip": (lambda norm: 0 < norm < math.inf, "positive and finite"),
    "lr": (lambda rate: 0 < rate < math.inf, "positive and finite"),
    "momentum": (lambda share: 0 <= share < 1, "in [0, 1)"),
    "weight_decay": (lambda decay: 0 <= decay < math.inf, "at least 0 and finite"),
    **dict.fromkeys(("erase", "warmup"), (lambda share: 0 <= share < 1, "a share in [0, 1)")),
    "lr_end": (lambda rate: 0 <= rate < math.inf, "at least 0 and finite"),
    "label_smoothing": (lambda share: 0 <= share < 1, "a share in [0, 1)"),
}
"""What a setting must be, if it is not ``None``; NaN passes none."""


@dataclass(frozen=True)
class TrainConfig(RunSettings, OptimisationSettings, PruningSettings, ModelSettings, DataSettings):  # the last's first
    """Train a model on pruned batches, with Partial Forward Blocking, or on full data."""

    extended_from: tyro.conf.Suppress[int] = 0
    """Epochs after which a finished run was given more, by --resume RUN --epochs MORE."""

    def __post_init__(self) -> None:
        from pfb.lab.train.methods import method_of

        method = method_of(self.method)
        for name, value in {"model": default_model(self.data), **method.window}.items():
            if getattr(self, name) in (None, ""):
                object.__setattr__(self, name, value)
        for name, (allowed, what) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not allowed(value):
                raise RunError(f"--{name.replace('_', '-')} must be {what} (got {value})")
        if self.image_size is not None and not self.data.startswith("imagefolder:"):
            raise RunError(f"--image-size is for image folders (got --data {self.data}); leave it out")
        if self.fill and (not method.before_model or self.accumulate > 1):
            said = f"--accumulate {self.accumulate}" if method.before_model else f"--method {self.method}"
            raise RunError(f"--fill gathers batches that are pruned before the model, step by step (got {said})")
        if self.batch_size % self.repeats:
            raise RunError(f"--batch-size must be a multiple of --repeats {self.repeats} (got {self.batch_size})")
        if self.split != "folders" and not self.data.startswith("imagefolder:"):
            raise RunError(f"--split {self.split} is for image folders (got --data {self.data}); leave it out")
        try:
            self.schedule()
            pfb.RareFirst(self.alpha)
            pfb.MovingCenters(self.n_centers, self.beta)
        except ValueError as error:
            raise in_flags(error) from error

    def schedule(self) -> pfb.Schedule:
        """The pruned share over training."""
        assert self.start is not None and self.stop is not None and self.ramp is not None  # the method's, since then
        return pfb.window(self.prune, start=self.start, stop=self.stop, ramp=self.ramp)

    def changed(self) -> list[str]:
        """Names of the settings that differ from their defaults, of this method and data."""
        named: dict[str, Any] = {"data": self.data, "method": self.method}
        defaults = dataclasses.asdict(TrainConfig(**named)) | {name: getattr(TrainConfig, name) for name in named}
        return [name for name, default in defaults.items() if getattr(self, name) != default]

    def moved_to(self, run: Path) -> TrainConfig:
        """The same settings for a run whose folder was moved."""
        return dataclasses.replace(self, out=run)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, default=str)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Read back what :meth:`to_json` wrote; raises ``RunError`` for anything else."""
        try:
            settings = _settings(files.parse_json(text), "it")
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
        text = files.read_text(path)
        values = tomllib.loads(text) if path.suffix == ".toml" else files.parse_json(text)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"--config {path} cannot be read ({error})") from error
    return _settings(values, f"--config {path}")


def default_model(data: str) -> str:
    """The model for data that come without ``--model``: of their task, and small."""
    return {"shapes": "segformer", "text": "gpt"}.get(data, "cifar-resnet8")


def in_flags(error: Exception) -> RunError:
    """An error of the library as the command line says it: `name` of a setting is its flag there.

    Example:
        >>> str(in_flags(ValueError("pass `channel_dim=1`, or another `cut=`, to `pfb.attach`")))
        'pass --channel-dim 1, or another --cut, to `pfb.attach`'
    """
    settings = {f.name for f in dataclasses.fields(TrainConfig)}

    def flag(code: re.Match[str]) -> str:
        name, value = code[1], code[2] or ""
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


NOT_OF_THE_RESULT = ("out", "data_root", "overwrite", "minutes", "track")
"""Settings that decide where and when, not what comes out."""


def without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings for a published result: what decided it, and no folder of the machine it ran
    on.
    """
    kept = {name: value for name, value in settings.items() if name not in NOT_OF_THE_RESULT}
    if kept["data"].startswith("imagefolder:"):
        kept["data"] = f"imagefolder:{Path(kept['data'].removeprefix('imagefolder:')).name}"
    if kept.get("drop"):
        kept["drop"] = Path(kept["drop"]).name
    return kept
