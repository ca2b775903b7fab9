"""Trainings on CIFAR-10 to their last epoch, with the data on the device.

All arms of a seed see the same batches in the same order, augmented alike. Shape suffixes: N
samples, K kept ones.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import pfb
from pfb.selection.sampling import drawn
from studies.gpu import images
from studies.gpu.images import Images
from studies.gpu.networks import for_cifar

Settings = dict[str, Any]

TRAIN_JUDGED = 2000
CUT = "layer1"


class Oracle:
    """Draws with weight 1 / number of frames, which are handed in before each call."""

    reads = "nothing"

    def __init__(self) -> None:
        self.copies_N = torch.ones(0)

    def __call__(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return drawn(-self.copies_N.log(), generator)


class Hardest:
    """Keeps the samples of largest loss."""

    reads = "nothing"

    def __init__(self) -> None:
        self.losses_N = torch.ones(0)

    def __call__(self, features: Tensor) -> Tensor:
        return self.losses_N


@functools.lru_cache(maxsize=2)
def _images(data: Path, device: torch.device, kind: str, sizes: tuple[tuple[str, int], ...]) -> Images:
    return images.load(data, device, kind, dict(sizes))


def train(settings: Settings, data: Path, device: torch.device) -> dict[str, Any]:
    """Train one arm with one seed; returns accuracies, and what was trained on."""
    torch.backends.cudnn.benchmark = False
    pictures = _images(data, device, settings["data"], tuple(settings["sizes"].items()))
    begun = time.monotonic()
    run = Run(settings, pictures, device)
    run.train()
    return {**run.result(), "train_seconds": round(time.monotonic() - begun, 2)}


class Run:
    """One training.

    Args:
        settings: data, arm, seed, and the recipe.
        pictures: the images.
        device: where they lie.
    """

    def __init__(self, settings: Settings, pictures: Images, device: torch.device) -> None:
        self.settings, self.pictures, self.device = settings, pictures, device
        arm, batch, prune = settings["arm"], settings["batch"], settings["prune"]
        start, stop = settings["window"]
        self.full_steps = len(pictures) // batch * settings["epochs"]
        is_short = arm in ("short", "removed-true")
        self.steps = round(self.full_steps * (1 - prune * (stop - start))) if is_short else self.full_steps
        torch.manual_seed(settings["seed"])
        self.model = for_cifar(settings["tiny"]).to(device).to(memory_format=torch.channels_last)
        share: Any = prune if settings["always"] else pfb.window(prune, start, stop)
        self.rules: dict[str, Any] = {
            "uniform": pfb.Uniform(),
            "oracle": Oracle(),
            "hardest": Hardest(),
            "copies": None,
        }
        self.pruner = self.blocker = None
        if arm in self.rules:
            memory = pfb.NeighbourMemory(settings["memory"]) if arm == "copies" else None
            self.pruner = pfb.BatchPruner(
                share, rule=self.rules[arm], density=memory, total_steps=self.steps, seed=settings["seed"]
            )
        elif arm in ("paper", "uniform-inside"):
            rule = {} if arm == "paper" else {"rule": pfb.Uniform()}
            self.blocker = pfb.attach(self.model, CUT, **pfb.paper(self.steps, prune) | rule)
        self.trained = 0
        self.kept_N, self.met_N = (torch.zeros(len(pictures), device=device) for _ in range(2))

    def train(self) -> None:
        """To the last step."""
        settings = self.settings
        if settings["compile"]:
            self.model.compile(dynamic=False)
        optimizer = torch.optim.SGD(
            self.model.parameters(), settings["lr"], 0.9, weight_decay=5e-4, nesterov=True, foreach=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings["lr"], total_steps=self.steps, pct_start=0.2)
        generator = torch.Generator(self.device).manual_seed(settings["seed"])
        batches = self.batches()
        for _ in range(self.steps):
            which_N = next(batches)
            x = images.standardized(images.augmented(self.pictures.train[which_N], generator))
            x, labels, which_K = self.pruned(x, self.pictures.labels[which_N], which_N)
            with self.autocast():
                logits = self.model(x)
            if self.blocker is not None:
                labels, which_K = self.blocker.select(labels, which_N)
            F.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            self.count(which_N, which_K)
            if self.blocker is not None:
                self.blocker.step()

    def pruned(self, x: Tensor, labels: Tensor, which_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What an arm that prunes before the model leaves of a batch."""
        if self.pruner is None:
            return x, labels, which_N
        rule = self.rules[self.settings["arm"]]
        if isinstance(rule, Oracle):
            rule.copies_N = self.pictures.copies[which_N]
        elif isinstance(rule, Hardest):
            self.model.eval()
            with torch.no_grad(), self.autocast():
                rule.losses_N = F.cross_entropy(self.model(x).float(), labels, reduction="none")
            self.model.train()
        x, labels = self.pruner(x, labels)
        selection = self.pruner.selection
        return x, labels, which_N if selection is None else which_N[selection.indices]

    def batches(self) -> Iterator[Tensor]:
        """Indices of the samples of a batch, without end."""
        of = self.pictures.distinct if self.settings["arm"] == "removed-true" else None
        samples, batch = len(self.pictures) if of is None else len(of), self.settings["batch"]
        generator = torch.Generator(self.device).manual_seed(self.settings["seed"] + 1_000_000)
        while True:
            order = torch.randperm(samples, generator=generator, device=self.device)
            order = order if of is None else of[order]
            yield from torch.split(order[: samples // batch * batch], batch)

    def count(self, which_N: Tensor, which_K: Tensor) -> None:
        """Which samples were kept, where some were left out."""
        self.trained += len(which_K)
        if len(which_K) < len(which_N):
            self.met_N.index_add_(0, which_N, torch.ones(len(which_N), device=self.device))
            self.kept_N.index_add_(0, which_K, torch.ones(len(which_K), device=self.device))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def result(self) -> dict[str, Any]:
        """Of the last step's model."""
        pictures = self.pictures
        found = {
            "test_accuracy": self.accuracy(pictures.test, pictures.test_labels),
            "train_accuracy": self.accuracy(*self.some_of_train()),
            "steps": self.steps,
            "full_steps": self.full_steps,
            "trained": self.trained,
        }
        frames_N = pictures.copies > 1
        for name, of_N in (("frames_kept", frames_N), ("singles_kept", ~frames_N)):
            met = float(self.met_N[of_N].sum())
            found[name] = round(float(self.kept_N[of_N].sum()) / met, 4) if met else None
        return found

    def some_of_train(self) -> tuple[Tensor, Tensor]:
        """At most 2,000 training samples, spread over all."""
        every = -(-len(self.pictures) // TRAIN_JUDGED)
        return images.inner(self.pictures.train[::every]), self.pictures.labels[::every]

    @torch.no_grad()
    def accuracy(self, pictures: Tensor, labels: Tensor) -> float:
        """Share of the images that are named right."""
        self.model.eval()
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        for x, y in zip(torch.split(pictures, 1000), torch.split(labels, 1000), strict=True):
            with self.autocast():
                right += (self.model(images.standardized(x)).argmax(1) == y).sum()
        return float(right) / len(labels)
