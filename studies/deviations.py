"""Do this project's answers to what the paper leaves open, and its departures from the authors'
release, change which samples are kept? Each beside ``pfb.paper``, while a network trains by it.

Shape suffixes: N samples, C centers, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

import pfb
from pfb.density.kernels import log_density, log_importance, log_kernels, silverman_bandwidth
from pfb.features.cut import random_projection
from pfb.lab.bench import checks, output
from pfb.selection.selection import keep_count, keep_largest
from pfb.utils.timing import Spread
from studies.gpu import images
from studies.gpu.plan import SIZES

CUT, DIMENSIONS, ALPHA = "layer1", 128, 0.01
REFERENCE = "as `pfb.paper`"
Centers = pfb.MovingCenters
Read = Callable[[Centers, Tensor], Tensor]


@dataclass(frozen=True)
class DeviationsConfig:
    """Which samples the paper's rule keeps under other readings of the paper, and as its authors'
    release has it: after stage 1 of ResNet-50, with one block in each later stage, trained on
    CIFAR-10 by the paper's rule.
    """

    data: Path = Path("gpu-data")
    """Folder of the images as `python -m studies gpu --pack FOLDER` writes them."""
    steps: int = 300
    batch: int = 128
    prune: float = 0.4
    seed: int = 0
    out: Path = Path("runs/deviations.json")
    """All numbers (.json) and, beside it, the table (.md)."""

    def __post_init__(self) -> None:
        checks.at_least(2, steps=self.steps, batch=self.batch)


@dataclass
class Variant:
    """The rule under another reading, with a density of its own that its own choice feeds.

    Attributes:
        centers: the density.
        reduced: features ``[N, D]`` as it sees them.
        read: log density ``[N]`` of these.
        alpha: upper end of the random term.
        redrawn: draw the random term anew; all others share one draw.
    """

    centers: Centers
    reduced: Callable[[Tensor], Tensor]
    read: Read = Centers.log_density
    alpha: float = ALPHA
    redrawn: bool = False

    def choose(self, features_ND: Tensor, draw_N: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """Log density ``[N]`` and the indices ``[K]`` of what is kept; feeds the density."""
        x_ND = self.reduced(features_ND)
        log_f_N = self.read(self.centers, x_ND) if self.centers.ready else x_ND.new_zeros(len(x_ND))
        draw_N = torch.rand_like(draw_N) if self.redrawn else draw_N
        kept_K = keep_largest(log_importance(log_f_N, self.alpha * draw_N), keep)
        self.centers.accumulate(x_ND[kept_K])
        self.centers.apply()
        return log_f_N, kept_K


def with_bandwidth(bandwidth: Callable[[Centers, Tensor], Tensor]) -> Read:
    """The density with another bandwidth ``[D]``."""

    def read(centers: Centers, x_ND: Tensor) -> Tensor:
        counts, at = centers.counts, centers.centers
        assert counts is not None
        assert at is not None
        return log_density(x_ND, at, counts / counts.sum(), bandwidth(centers, x_ND))

    return read


def spread_of_kept(centers: Centers) -> Tensor:
    """``sigma`` ``[D]`` as ``pfb.MovingCenters`` has it."""
    assert centers.variance is not None
    return centers.variance.sqrt()


def by_all_samples(centers: Centers, x_ND: Tensor) -> Tensor:
    """Silverman's N as the number of samples that went to the centers so far."""
    assert centers.counts is not None
    return silverman_bandwidth(spread_of_kept(centers), int(centers.counts.sum()))


def by_spread_of_centers(centers: Centers, x_ND: Tensor) -> Tensor:
    """Sigma as the standard deviation of the kernels' own points, as a textbook's estimator."""
    assert centers.centers is not None
    return silverman_bandwidth(centers.centers.std(0), centers.n_centers)


def by_spread_of_batch(centers: Centers, x_ND: Tensor) -> Tensor:
    """Sigma as the standard deviation of the batch at hand."""
    return silverman_bandwidth(x_ND.std(0), centers.n_centers)


def factor_as_variance(centers: Centers, x_ND: Tensor) -> Tensor:
    """As the release: Silverman's ``h`` stands where ``h ** 2`` should."""
    assert centers.bandwidth is not None
    return centers.bandwidth.sqrt()


def mean_of_logs(centers: Centers, x_ND: Tensor) -> Tensor:
    """As the release: the mean of log kernels instead of the logarithm of their weighted sum."""
    at, bandwidth = centers.centers, centers.bandwidth
    assert at is not None
    assert bandwidth is not None
    return log_kernels(x_ND, at, bandwidth).mean(1)


def variants(channels: int, dimensions: int = DIMENSIONS) -> dict[str, Variant]:
    """By what the table calls them, the reference first."""
    projection = random_projection(channels, dimensions, torch.device("cpu"))

    def projected(x_ND: Tensor) -> Tensor:
        return x_ND @ projection

    def neighbours(x_ND: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(x_ND[:, None], dimensions)[:, 0]

    def one(read: Read = Centers.log_density, n: int = 100, **settings: Any) -> Variant:
        return Variant(Centers(n), **{"reduced": projected, "read": read, **settings})

    return {
        REFERENCE: one(),
        "another draw of the random term": one(redrawn=True),
        "no random term": one(alpha=0.0),
        "64 centers (release)": one(n=64),
        "N: samples so far": one(with_bandwidth(by_all_samples)),
        "sigma: of the centers": one(with_bandwidth(by_spread_of_centers)),
        "sigma: of the batch": one(with_bandwidth(by_spread_of_batch)),
        f"not reduced: {channels} channels": one(reduced=lambda x_ND: x_ND),
        "reduced by averages of neighbours (release)": one(reduced=neighbours),
        "h as a variance (release)": one(with_bandwidth(factor_as_variance)),
        "mean of log kernels (release)": one(mean_of_logs),
    }


class Watch:
    """A rule that chooses as the reference does, and lets the others choose beside it."""

    reads: ClassVar = "features"

    def __init__(self, dimensions: int, prune: float) -> None:
        self.dimensions, self.prune = dimensions, prune
        self.variants: dict[str, Variant] = {}
        self.chosen: list[dict[str, tuple[Tensor, Tensor]]] = []

    def __call__(self, features: Tensor) -> Tensor:
        self.variants = self.variants or variants(features.size(1), self.dimensions)
        draw_N, keep = torch.rand(len(features)), keep_count(len(features), self.prune)
        self.chosen.append({name: v.choose(features, draw_N, keep) for name, v in self.variants.items()})
        return torch.zeros(len(features)).index_fill(0, self.chosen[-1][REFERENCE][1], 1.0)


def run(config: DeviationsConfig) -> Path:
    """Train, let all variants choose, write numbers and table; returns the table's path."""
    from rich.progress import track

    torch.manual_seed(config.seed)
    pictures = images.load(config.data, torch.device("cpu"), "plain", SIZES)
    model = ResNet(Bottleneck, [3, 1, 1, 1], num_classes=10).to(memory_format=torch.channels_last)
    watch = Watch(DIMENSIONS, config.prune)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(config.seed)
    with pfb.attach(model, CUT, config.prune, rule=watch) as blocker:
        for which_N in track(list(batches(len(pictures), config, generator)), "steps"):
            x = images.standardized(images.augmented(pictures.train[which_N], generator))
            loss = F.cross_entropy(model(x), blocker.select(pictures.labels[which_N]))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            blocker.step()
    counted = watch.chosen[len(watch.chosen) // 2 :]  # before, centers settle
    numbers = {
        **output.origin({**asdict(config), "data": "CIFAR-10", "out": None}, torch.device("cpu")),
        "batches": len(counted),
        "variants": {name: compared(counted, name) for name in watch.variants},
    }
    return output.write(config.out, numbers, render)


def batches(n: int, config: DeviationsConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of the samples of each step; every epoch in an order of its own."""
    left = config.steps
    while left > 0:
        some = torch.split(torch.randperm(n, generator=generator), config.batch)[: min(left, n // config.batch)]
        left -= len(some)
        yield from some


def compared(chosen: list[dict[str, tuple[Tensor, Tensor]]], name: str) -> dict[str, Any]:
    """A variant beside the reference, over batches."""
    same, ranks, spread = [], [], []
    for by_name in chosen:
        (log_f_N, kept_K), (reference_N, wanted_K) = by_name[name], by_name[REFERENCE]
        same.append(float(torch.isin(wanted_K, kept_K).float().mean()))
        ranks.append(float(spearmanr(log_f_N.numpy(), reference_N.numpy()).statistic))
        spread.append(float(log_f_N.std()))
    found = {"same_kept": same, "rank_correlation": ranks, "spread": spread}
    return {what: Spread.of(values).__dict__ for what, values in found.items()}


def render(numbers: dict[str, Any]) -> str:
    """Markdown table; medians over the batches of the second half, quartiles in brackets."""
    rows = []
    for name, row in numbers["variants"].items():
        same = {k: f"{100 * row['same_kept'][k]:.0f}" for k in ("median", "low", "high")}
        kept = f"{same['median']} ({same['low']} to {same['high']})"
        rows.append([name, kept, f"{row['rank_correlation']['median']:.2f}", f"{row['spread']['median']:.1f}"])
    at_random = 100 * (1 - numbers["config"]["prune"])
    rows.append(["at random", f"{at_random:.0f}, by chance", "0", ""])
    header = ["the rule", "of the samples that `pfb.paper` keeps, kept too, %", "rank correlation of log f"]
    return output.table([*header, "std of log f, nats"], rows)
