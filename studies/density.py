"""What does density in a shallow layer know? Its relation to loss, gradient and class while a
network trains on all data.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import pfb
from pfb.features.cut import batched_tensor, pool
from pfb.features.scoring_pass import output_of, scoring_mode
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device
from pfb.lab.train.config import TrainConfig, without_folders
from pfb.lab.train.data import EpochSampler, Source, load
from pfb.lab.train.models import build
from pfb.selection.selection import keep_count, keep_largest
from studies.agreement import rank_correlation

RANDOM_TERM = math.log(100)  # the paper's random term reaches 1 % of the largest density: so many nats below it


@dataclass(frozen=True)
class DensityConfig:
    """Train on full data, watch the density at several cuts, and relate it to what a measure of
    importance would want to know.
    """

    recipe: TrainConfig = field(default_factory=lambda: TrainConfig(model="cifar-resnet14"))
    cuts: tuple[str, ...] = ("bn1", "layer1", "layer2", "layer3")
    prune: float = 0.5
    every: int = 5
    """Epochs between two looks."""
    out: Path = Path("runs/density.json")
    """All numbers (.json) and, beside it, the table (.md) and the figure (.png)."""

    def __post_init__(self) -> None:
        checks.given(cuts=self.cuts)
        checks.shares(prune=self.prune)
        checks.at_least(1, every=self.every)


def run(config: DensityConfig) -> Path:
    """Train, look, write; returns the table's path."""
    from rich.progress import track

    recipe = config.recipe
    torch.manual_seed(recipe.seed)
    source = load(recipe)
    device = Device("cpu" if recipe.cpu else None).place
    model = build(recipe.model, len(source.classes), source.channels, source.image_size).to(device)
    layers = [name for name, _ in model.named_modules() if name]
    checks.known(layers, cuts=config.cuts)
    estimators = {cut: pfb.DensityEstimator(recipe.n_centers, recipe.beta) for cut in config.cuts}
    dataset: Any = source.train
    sampler = EpochSampler(len(dataset), recipe.seed)
    loader = torch.utils.data.DataLoader(
        dataset, recipe.batch_size, sampler=sampler, drop_last=True, collate_fn=source.collate
    )
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=len(loader) * recipe.epochs)
    looks = []
    for epoch in track(range(1, recipe.epochs + 1), "epochs"):
        sampler.set_epoch(epoch - 1)
        for batch in loader:
            image, label = source.prepare_train(batch["input"].to(device)), batch["label"].to(device)
            for cut, estimator in estimators.items():
                estimator.accumulate(_features(model, cut, image))
                estimator.apply()
            loss = F.cross_entropy(model(image), label, label_smoothing=recipe.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if epoch == 1 or epoch % config.every == 0 or epoch == recipe.epochs:
            looks.append({"epoch": epoch, "cuts": _look(model, source, dataset, estimators, config, device)})
    numbers = {
        **output.origin(without_folders(json.loads(recipe.to_json())), device),
        "prune": config.prune,
        "classes": source.classes,
        "looks": looks,
    }
    return output.write(config.out, numbers, render, draw)


def render(numbers: dict[str, Any]) -> str:
    """Markdown table of the first, a middle and the last look."""
    header = ["cut", "epoch", "rank correlation of rareness with loss", "with gradient norm", "std of log f, nats"]
    looks = numbers["looks"]
    rows = []
    for cut in looks[0]["cuts"]:
        for look in (looks[0], looks[len(looks) // 2], looks[-1]):
            row = look["cuts"][cut]
            known = [f"{row['loss']:+.2f}", f"{row['gradient']:+.2f}", f"{row['spread']:.1f}", f"{row['random']:.0%}"]
            kept = f"{min(row['kept_by_class']):.0%} to {max(row['kept_by_class']):.0%}"
            rows.append([f"`{cut}`", look["epoch"], *known, kept])
    return output.table([*header, "decided by the random term", "kept by class, lowest to highest"], rows)


def draw(numbers: dict[str, Any]) -> Figure:
    """Correlation with the loss over training for each cut, and what strict rarest-first would keep
    of each class.
    """
    figure, (over_time, by_class) = output.panels(12, 4, 2)
    looks = numbers["looks"]
    epochs = [look["epoch"] for look in looks]
    for color, cut in enumerate(looks[0]["cuts"]):
        for name, style in (("loss", "-"), ("gradient", "--")):
            over_time.plot(
                epochs,
                [look["cuts"][cut][name] for look in looks],
                style,
                color=f"C{color}",
                label=cut if name == "loss" else None,
            )
    over_time.axhline(0, color="black", linewidth=0.8)
    over_time.set(title="Rareness and loss (solid), gradient norm (dashed)", xlabel="epoch", ylabel="rank correlation")
    figure.legend(*over_time.get_legend_handles_labels(), title="cut", fontsize=8, loc="outside right upper")
    cuts = list(looks[0]["cuts"])
    width = 0.8 / len(cuts)
    for color, cut in enumerate(cuts):
        shares = [100 * share for share in looks[-1]["cuts"][cut]["kept_by_class"]]
        by_class.bar([i + width * color for i in range(len(shares))], shares, width, label=cut, color=f"C{color}")
    by_class.axhline(100 * (1 - numbers["prune"]), color="black", linewidth=0.8, linestyle=":")
    by_class.set_xticks([i + 0.4 for i in range(len(numbers["classes"]))], numbers["classes"], rotation=40, ha="right")
    by_class.set(title="Kept by strict rarest-first at the end, by class", ylabel="% (dotted: average)")
    return figure


@torch.no_grad()
def _look(
    model: nn.Module,
    source: Source,
    dataset: Any,
    estimators: dict[str, pfb.DensityEstimator],
    config: DensityConfig,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """Over the training set as it is, in evaluation mode."""
    model.eval()
    losses, gradients, labels = [], [], []
    densities: dict[str, list[Tensor]] = {cut: [] for cut in estimators}
    for start in range(0, len(dataset), 250):
        batch = dataset.__getitems__(list(range(start, min(start + 250, len(dataset)))))
        image, label = source.prepare_test(batch["input"].to(device)), batch["label"].to(device)
        logits = model(image)
        losses.append(F.cross_entropy(logits, label, reduction="none"))
        gradients.append((logits.softmax(1) - F.one_hot(label, len(source.classes))).norm(dim=1))
        labels.append(label)
        for cut, estimator in estimators.items():
            densities[cut].append(estimator.log_density(_features(model, cut, image)))
    model.train()
    loss, gradient, label = torch.cat(losses), torch.cat(gradients), torch.cat(labels)
    rows = {}
    for cut, parts in densities.items():
        density = torch.cat(parts)
        kept = torch.zeros(len(density), dtype=torch.bool, device=device)
        kept[keep_largest(-density, keep_count(len(density), config.prune))] = True
        rows[cut] = {
            "loss": rank_correlation(-density, loss),
            "gradient": rank_correlation(-density, gradient),
            "spread": float(density.std()),
            "random": float((density < density.max() - RANDOM_TERM).float().mean()),
            "kept_by_class": [float(kept[label == c].float().mean()) for c in range(len(source.classes))],
        }
    return rows


def _features(model: nn.Module, cut: str, image: Tensor) -> Tensor:
    """As the scoring pass of ``recompute`` sees them: in evaluation mode, without graph."""
    with scoring_mode(model, batch_statistics=False):
        return pool(batched_tensor(output_of(model, model.get_submodule(cut), (image,), {})), 1)
