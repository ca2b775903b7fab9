"""Do cheaper features choose the same samples? Each way to get them beside the plain one, while a
network trains.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

import pfb
from pfb.features.cut import batched_tensor, pool, random_projection
from pfb.features.scoring_pass import output_of, scoring_mode
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, first_block
from pfb.lab.train.config import TrainConfig, without_folders
from pfb.lab.train.data import load
from pfb.lab.train.models import build_for
from pfb.selection.selection import keep_count, keep_largest
from pfb.utils.timing import Spread, clock_of, interleaved_seconds

Way = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AgreementConfig:
    """Compare cheaper scoring passes and reduced features with the plain ones: rank correlation,
    same choice, cost.
    """

    recipe: TrainConfig = field(default_factory=lambda: TrainConfig(model="resnet18", cut="layer1", epochs=3))
    """The network is trained on full data for --recipe.epochs while every estimator watches the
    same batches.
    """
    dims: tuple[int, ...] = (128, 32)
    """Dimensions to reduce to, where the cut has more channels."""
    repeats: int = 10
    """Counted rounds of the timing."""
    out: Path = Path("runs/agreement.json")
    """All numbers (.json) and, beside it, the table (.md)."""

    def __post_init__(self) -> None:
        checks.at_least(1, dims=self.dims, repeats=self.repeats)


def run(config: AgreementConfig) -> Path:
    """Train, measure, write the numbers and the table; returns the table's path."""
    from rich.progress import track

    recipe = config.recipe
    torch.manual_seed(recipe.seed)
    source = load(recipe)
    device = Device("cpu" if recipe.cpu else None).place
    model = build_for(source, recipe.model).to(device)
    with pfb.attach(model, recipe.cut) as blocker:
        cut = blocker.cut
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    loader = torch.utils.data.DataLoader(
        source.train, recipe.batch_size, shuffle=True, drop_last=True, collate_fn=source.collate
    )
    ways = _ways(model, cut, config.dims, source.prepare_train(next(iter(loader))["input"].to(device)))
    estimators = {name: pfb.DensityEstimator(recipe.n_centers, recipe.beta) for name in ways}
    densities: dict[str, list[Tensor]] = {name: [] for name in ways}
    for _ in track(range(recipe.epochs), "epochs"):
        for batch in loader:
            image = source.prepare_train(batch["input"].to(device))
            for name, way in ways.items():
                x = way(image)
                if estimators[name].ready:
                    densities[name].append(estimators[name].log_density(x))
                estimators[name].accumulate(x)
                estimators[name].apply()
            F.cross_entropy(model(image), batch["label"].to(device)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    costs = interleaved_seconds(
        {name: lambda n=name, w=way: estimators[n].log_density(w(image)) for name, way in ways.items()},  # type: ignore[misc]
        device,
        config.repeats,
        clock=clock_of("cpu" if device.type == "cpu" else "wall"),
    )
    settings = without_folders(json.loads(recipe.to_json()))
    numbers = {
        **output.origin({"recipe": settings, "dims": config.dims, "repeats": config.repeats}, device),
        "cut": cut,
        "batches": len(densities["plain"]) - len(densities["plain"]) // 2,
        "ways": {name: _row(densities[name], densities["plain"], recipe.prune, costs[name]) for name in ways},
    }
    return output.write(config.out, numbers, render)


def render(numbers: dict[str, Any]) -> str:
    """Markdown table; medians over the batches of the second half of training."""
    kept = f"same samples kept at {numbers['config']['recipe']['prune']:g}"
    header = [f"features of `{numbers['cut']}`", "rank correlation with plain", kept, "std of log f, nats"]
    rows = [
        [
            name,
            f"{row['rank_correlation']['median']:.3f}",
            f"{row['same_kept']['median']:.1%}",
            f"{row['spread']['median']:.1f}",
            f"{1000 * row['seconds']['median']:.1f}",
        ]
        for name, row in numbers["ways"].items()
    ]
    return output.table([*header, "pass and density, ms"], rows)


def _ways(model: nn.Module, cut: str, dims: tuple[int, ...], image: Tensor) -> dict[str, Way]:
    def features(x: Tensor, at: str = cut, batch_statistics: bool = False) -> Tensor:
        with scoring_mode(model, batch_statistics):
            return pool(batched_tensor(output_of(model, model.get_submodule(at), (x,), {})), 1)

    def low_precision(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return features(x)

    def at_half_resolution(x: Tensor) -> Tensor:
        return features(F.interpolate(x, scale_factor=0.5, mode="area"))

    ways: dict[str, Way] = {
        "plain": features,
        "bfloat16": low_precision,
        "half the resolution": at_half_resolution,
        "BatchNorm by the batch": lambda x: features(x, batch_statistics=True),
    }
    early = first_block(model, cut)
    if early is not None:
        ways[f"after `{early}`"] = lambda x: features(x, at=early)
    channels = features(image).size(1)
    for d in dims:
        if d < channels:
            projection = random_projection(channels, d, image.device)
            ways[f"random projection to {d}"] = lambda x, p=projection: features(x) @ p  # type: ignore[misc]
            ways[f"average of neighbours to {d}"] = lambda x, d=d: F.adaptive_avg_pool1d(features(x)[:, None], d)[:, 0]  # type: ignore[misc]
    return ways


def _row(densities: list[Tensor], plain: list[Tensor], prune: float, seconds: list[float]) -> dict[str, Any]:
    half = len(plain) // 2  # the first half belongs to the centers' settling
    pairs = list(zip(densities[-(len(plain) - half) :], plain[half:], strict=True))
    return {
        "rank_correlation": Spread.of([rank_correlation(a, b) for a, b in pairs]).__dict__,
        "same_kept": Spread.of([_same_kept(a, b, prune) for a, b in pairs]).__dict__,
        "spread": Spread.of([float(a.std()) for a, _ in pairs]).__dict__,
        "seconds": Spread.of(seconds).__dict__,
    }


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's."""
    return float(spearmanr(a.cpu().numpy(), b.cpu().numpy()).statistic)


def _same_kept(a: Tensor, b: Tensor, prune: float) -> float:
    """Share of the samples kept by rarest-first on the one density that it keeps on the
    other too.
    """
    k = keep_count(len(a), prune)
    kept = [set(keep_largest(-x, k).tolist()) for x in (a, b)]
    return len(kept[0] & kept[1]) / k
