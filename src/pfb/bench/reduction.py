"""Should wide features be reduced? Each way against the unreduced density, on features of a network in training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import pfb
from pfb.features import random_projection
from pfb.measure import Spread, interleaved_seconds
from pfb.train import checkpoint
from pfb.train.config import TrainConfig, without_folders
from pfb.train.data import load
from pfb.train.models import build
from pfb.train.versions import versions


@dataclass(frozen=True)
class ReductionConfig:
    """Compare ways to reduce wide features: rank correlation of the density with the unreduced one, spread, and cost."""

    recipe: TrainConfig = field(default_factory=lambda: TrainConfig(model="resnet18", cut="layer3", batch_size=128))
    """The network is trained on full data for --recipe.epochs while every estimator watches the same features."""
    dims: tuple[int, ...] = (128, 32)
    out: Path = Path("runs/reduction.json")


def run(config: ReductionConfig) -> Path:
    """Train, measure, write the numbers and the table; returns the table's path."""
    recipe = config.recipe
    torch.manual_seed(recipe.seed)
    source = load(recipe)
    model = build(recipe.model, len(source.classes), source.channels, source.image_size)
    seen: list[Tensor] = []
    assert recipe.cut is not None

    def watch(features: Tensor) -> Tensor:
        seen.append(features)
        return torch.rand(len(features))

    watcher = pfb.attach(model, recipe.cut, 0.01, importance=watch)
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    loader = torch.utils.data.DataLoader(
        source.train, recipe.batch_size, shuffle=True, drop_last=True, collate_fn=source.collate
    )
    ways: dict[str, Callable[[Tensor], Tensor]] = {}
    estimators: dict[str, pfb.DensityEstimator] = {}
    densities: dict[str, list[Tensor]] = {}
    for _ in range(recipe.epochs):
        for batch in loader:
            seen.clear()
            logits = model(source.prepare_train(batch["input"]))
            F.cross_entropy(logits, watcher.select(batch["label"])).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            watcher.step()
            if not ways:
                ways = _ways(seen[0].size(1), config.dims)
                estimators = {name: pfb.DensityEstimator() for name in ways}
                densities = {name: [] for name in ways}
            for name, reduce in ways.items():
                x = reduce(seen[0])
                if estimators[name].ready:
                    densities[name].append(estimators[name].log_density(x))
                estimators[name].accumulate(x)
                estimators[name].apply()
    features = seen[0]
    costs = interleaved_seconds(
        {name: lambda n=name, r=reduce: estimators[n].log_density(r(features)) for name, reduce in ways.items()},  # type: ignore[misc]
        torch.device("cpu"),
        repeats=200,
        warmup=20,
        clock=time.perf_counter,
    )
    rows: dict[str, dict[str, Any]] = {}
    half = len(densities["none"]) // 2  # the first half belongs to the centers' settling
    for name in ways:
        pairs = list(zip(densities[name][half:], densities["none"][half:], strict=True))
        correlations = [_rank_correlation(a, b) for a, b in pairs]
        same = [_overlap(a, b, 0.4) for a, b in pairs]
        rows[name] = {
            "rank_correlation": Spread.of(correlations).__dict__,
            "same_kept_at_0.4": Spread.of(same).__dict__,
            "std_log_density": Spread.of([float(a.std()) for a, _ in pairs]).__dict__,
            "microseconds": 1e6 * Spread.of(costs[name]).median,
        }
    numbers = {
        "versions": versions(),
        "config": without_folders(json.loads(recipe.to_json())),
        "channels": features.size(1),
        "ways": rows,
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(config.out, json.dumps(numbers, indent=1))
    lines = [
        f"| from {features.size(1)} channels by | rank correlation with unreduced | same samples kept at 0.4 | std of log f | µs |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        correlation, same_kept, std = row["rank_correlation"], row["same_kept_at_0.4"], row["std_log_density"]
        lines.append(
            f"| {name} | {correlation['median']:.3f} | {same_kept['median']:.1%} | {std['median']:.1f} | "
            f"{row['microseconds']:.0f} |"
        )
    table = config.out.with_suffix(".md")
    checkpoint.write_text(table, "\n".join(lines) + "\n")
    print(table.read_text())
    return table


def _ways(channels: int, dims: tuple[int, ...]) -> dict[str, Callable[[Tensor], Tensor]]:
    ways: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda x: x}
    for d in dims:
        projection = random_projection(channels, d)
        ways[f"random projection to {d}"] = lambda x, projection=projection: x @ projection  # type: ignore[misc]
        ways[f"average of neighbours to {d}"] = lambda x, d=d: F.adaptive_avg_pool1d(x[:, None], d)[:, 0]  # type: ignore[misc]
    return ways


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's."""
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def _overlap(a: Tensor, b: Tensor, prune: float) -> float:
    """Share of the samples kept by the one that the other keeps too."""
    k = len(a) - int(prune * len(a))
    kept = [set(x.topk(k, largest=False).indices.tolist()) for x in (a, b)]
    return len(kept[0] & kept[1]) / k
