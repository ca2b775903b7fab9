"""How well does a sketch see copies, and which weights should they have? Without any training."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import pfb
from pfb.density.kernels import COPY
from pfb.density.neighbours import MOST
from pfb.density.search import in_deviations
from pfb.features.sketch import Sketch
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, On
from studies.arms import batches
from studies.redundancy import STRONG, Clips, strongly_augmented

PRUNES = (0.5, 0.7)
USUAL = "usual"


@dataclass(frozen=True)
class CopiesConfig:
    """Run batches past the memory until it is full, then ask what it says of the next ones: can
    copies be told from single images, as clips get shorter, change more, and the memory smaller;
    and what part of them would each rule keep?
    """

    clips: Clips = field(default_factory=Clips)
    lengths: tuple[int, ...] = (40, 20, 10, 5, 2)
    """Frames of a clip, with as many frames in all."""
    noises: tuple[float, ...] = (0.0, 10.0, 20.0, 40.0)
    """Standard deviations of the frames' noise, in grey levels of 255."""
    memories: tuple[int, ...] = (256, 1024, 2048)
    batch_sizes: tuple[int, ...] = (16, 256, 1024)
    memory: int = 4096
    batch_size: int = 64
    queries: int = 2048
    """Samples that are judged."""
    on: On = field(default_factory=Device)
    out: Path = Path("runs/copies.json")
    """All numbers (.json) and, beside it, the tables (.md)."""

    def __post_init__(self) -> None:
        self.on.refuse("precision", "channels_last")
        checks.at_least(1, lengths=self.lengths, batch_sizes=self.batch_sizes, batch_size=self.batch_size)
        checks.at_least(2, memories=self.memories, memory=self.memory, queries=self.queries)


def run(config: CopiesConfig) -> Path:
    """Look, then write numbers and tables; returns the tables' path."""
    device = config.on.start()
    sight = [
        {"case": name, **_sight(_look(clips, size, batch, config.queries, device, augment))}
        for name, clips, size, batch, augment in _cases(config)
    ]
    usual = config.memory, config.batch_size, config.queries
    clips, distinct = (_look(case, *usual, device, rules=True) for case in (config.clips, config.clips.distinct))
    plain = dataclasses.replace(config.clips, light=0.0, noise=0.0)
    equal = _look(plain, *usual, device, augment=None, rules=True)
    sight.insert(0, {"case": _usual_case(config), **_sight(clips)})
    rules = [{"rule": name, **_shares(rule, clips, distinct, equal, config.batch_size)} for name, rule in RULES.items()]
    settings = dataclasses.asdict(config) | {"clips": config.clips.published()}
    return output.write(config.out, {**output.origin(settings, device), "sight": sight, "rules": rules}, render)


def render(numbers: dict[str, Any]) -> str:
    """Two Markdown tables."""
    sight = [[row["case"], *(f"{row[name]:.{digits}f}" for name, digits in SIGHT.items())] for row in numbers["sight"]]
    header = ["", "area under the curve", "half stopped: frames kept", "single images kept"]
    kept = [[row["rule"], *(f"{row[name]:.2f}" for name in COLUMNS)] for row in numbers["rules"]]
    return output.table(header, sight) + "\n" + output.table(["weight", *COLUMNS.values()], kept)


SIGHT = {"auc": 3, "frames": 2, "singles": 2}
COLUMNS = {
    "frames": "clips, half stopped: frames kept",
    "singles": "single images kept",
    "effective": "... weighed by 1 / chance, as good as, of the kept",
    "spread": "no copies: deviation of the chance",
    "equal": "equal frames, 70 % stopped: frames kept",
}


@dataclass(frozen=True)
class Seen:
    """What the memory says of N samples.

    Attributes:
        distances: to all M rows, in parts of what is usual around there, ``[N, M]``; ``[N, 0]`` if
            no rule was to read them.
        isolation: ``[N]``, as ``NeighbourMemory`` gives it.
        truth: ``[N]`` bool, whether others are copies.
        dimensions: D of the features.
    """

    distances: Tensor
    isolation: Tensor
    truth: Tensor
    dimensions: int

    @property
    def nearest(self) -> Tensor:
        return self.distances.amin(1).clamp_min(COPY)

    @property
    def copies(self) -> Tensor:
        """Rows that are so near that they are taken for copies, ``[N]``."""
        return (self.distances < MOST).sum(1)


def _usual_case(config: CopiesConfig) -> str:
    return f"clips of {config.clips.frames} frames, memory of {config.memory:,}, batches of {config.batch_size}"


def _cases(config: CopiesConfig) -> Iterator[tuple[str, Clips, int, int, str | None]]:
    """Changes of the usual case: name, data, rows of the memory, samples of a batch, and how they
    are augmented.
    """
    base, memory, batch = config.clips, config.memory, config.batch_size
    yield "... not augmented, or judged by the originals", base, memory, batch, None
    for how in STRONG:
        yield f"... {how}, too", base, memory, batch, how
    for length in config.lengths:
        if length != base.frames:
            clips = dataclasses.replace(base, clips=base.clips * base.frames // length, frames=length)
            yield f"... clips of {length}", clips, memory, batch, USUAL
    for noise in config.noises:
        yield f"... noise of {noise:g} grey levels", dataclasses.replace(base, noise=noise), memory, batch, USUAL
    for size in config.memories:
        yield f"... memory of {size:,}", base, size, batch, USUAL
    for size in config.batch_sizes:
        yield f"... batches of {size}", base, memory, size, USUAL


def _look(
    clips: Clips,
    size: int,
    batch_size: int,
    queries: int,
    device: torch.device,
    augment: str | None = USUAL,
    rules: bool = False,
) -> Seen:
    """Run the batches; distances to all rows are taken only for rules that read them."""
    torch.manual_seed(0)
    source, copies = clips.source()
    memory, sketch, train = pfb.NeighbourMemory(size), Sketch(), source.train
    prepare = source.prepare_test if augment is None else source.prepare_train
    distances, isolation, truth = [], [], []
    for indices in itertools.islice(
        batches(len(copies), batch_size), -(-size // batch_size) + -(-queries // batch_size)
    ):
        images = train.__getitems__(indices.tolist())["input"]  # type: ignore[attr-defined]
        x = sketch(prepare((strongly_augmented(images, augment) if augment in STRONG else images).to(device)))
        if memory.ready and memory.summary()["remembered"] == size:
            distances.append(_distances(memory, x) if rules else x.new_empty(len(x), 0))
            isolation.append(memory.isolation(x))
            truth.append(copies[indices] > 1)
        memory.accumulate(x)
        memory.apply()
    return Seen(torch.cat(distances), torch.cat(isolation), torch.cat(truth).to(device), x.size(1))


def _distances(memory: pfb.NeighbourMemory, x: Tensor) -> Tensor:
    z_ND, _, usual_N = memory._look(x)
    state = memory.state_dict()
    return torch.cdist(z_ND, in_deviations(state["rows"], state["frame"])) / usual_N[:, None]


def _sight(seen: Seen) -> dict[str, float]:
    auc = roc_auc_score(seen.truth.cpu().numpy(), -seen.isolation.cpu().numpy())
    half = chances(RULES[DEFAULT](seen), 1 - PRUNES[0])
    return {"auc": float(auc), "frames": float(half[seen.truth].mean()), "singles": float(half[~seen.truth].mean())}


def _median(seen: Seen) -> float:
    return float(seen.nearest.median())


def _kernels(seen: Seen) -> Tensor:
    """``1 / (1 + m)``, m normal kernels at the sample, of the bandwidth that makes new samples most
    likely.
    """
    some_RM = seen.distances[:512]
    likelihoods = {
        h: float(_log_kernels(some_RM, h).logsumexp(1).mean()) - math.log(h) * seen.dimensions for h in BANDWIDTHS
    }
    best = max(likelihoods, key=likelihoods.__getitem__)
    return -_log_kernels(seen.distances, best).exp().sum(1).log1p()


BANDWIDTHS = tuple(0.02 * 1.25**k for k in range(16))


def _log_kernels(distances_NM: Tensor, bandwidth: float) -> Tensor:
    return -0.5 * (distances_NM / bandwidth).square()


DEFAULT = "from 1/3 to 1, to the power of 4: `InverseDensity()`"
RULES: dict[str, Callable[[Seen], Tensor]] = {
    DEFAULT: lambda seen: 4 * seen.isolation.log(),
    "... squared: `InverseDensity(2)`": lambda seen: 2 * seen.isolation.log(),
    "distance as it is, to the power of 4": lambda seen: 4 * seen.nearest.log(),
    "... squared": lambda seen: 2 * seen.nearest.log(),
    "... to the power of 4, at most that of the median": lambda seen: 4 * seen.nearest.clamp_max(_median(seen)).log(),
    "1 / (1 + rows nearer than 0.6)": lambda seen: -seen.copies.log1p(),
    "1 / (1 + kernels), bandwidth of most likelihood": _kernels,
}
"""Logarithms of weights, by name."""


def chances(log_weights_N: Tensor, kept: float) -> Tensor:
    """Of each of very many samples to be drawn, ``1 - exp(-w t)``, with t such that a share
    ``kept`` of all is.

    Example:
        >>> chances(torch.tensor([0.0, 0.0, -30.0, -30.0]), 0.4).round(decimals=2)
        tensor([0.8000, 0.8000, 0.0000, 0.0000], dtype=torch.float64)
    """
    w_N = log_weights_N.double()
    low, high = -100.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        if float(-torch.expm1(-(w_N + middle).exp()).mean()) < kept:
            low = middle
        else:
            high = middle
    return -torch.expm1(-(w_N + high).exp())


def effective(chances_N: Tensor, batch_size: int) -> float:
    """So many samples of equal weight have a mean as steady as that of the kept ones, weighed by 1
    / chance, cut off at the root of their number in a batch as ``blocker.weights`` are; as a part
    of the kept.

    Example:
        >>> round(effective(torch.tensor([0.25, 0.75]), batch_size=64), 3)
        0.75
    """
    kept = float(chances_N.mean())
    weights_N = (kept / chances_N).clamp_max((batch_size * kept) ** 0.5)
    once, twice = (float((chances_N * weights_N**power).mean()) for power in (1, 2))
    return once**2 / twice / kept


def _shares(
    rule: Callable[[Seen], Tensor], clips: Seen, distinct: Seen, equal: Seen, batch_size: int
) -> dict[str, float]:
    half = chances(rule(clips), 1 - PRUNES[0])
    return {
        "frames": float(half[clips.truth].mean()),
        "singles": float(half[~clips.truth].mean()),
        "effective": effective(half, batch_size),
        "spread": float(chances(rule(distinct), 1 - PRUNES[0]).std()),
        "equal": float(chances(rule(equal), 1 - PRUNES[1])[equal.truth].mean()),
    }
