"""What benchmarks measure, and on what: a training step of a fresh model on random images, and the
device it runs on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

import pfb
from pfb.density.neighbours import MOST_PER_STEP
from pfb.lab.bench import checks
from pfb.lab.errors import RunError
from pfb.lab.train.nets.models import build
from pfb.utils.timing import count_saved_bytes


@dataclass(frozen=True)
class Device:
    """Where a benchmark runs, in which format, and how it tells the time."""

    device: str | None = None
    """By default the accelerator if there is one, else the CPU."""
    threads: int | None = None
    """CPU threads; 1 with --clock cpu gives the steadiest figures on a busy machine."""
    clock: Literal["wall", "cpu"] = "wall"
    """Elapsed seconds, or CPU seconds of this process."""
    precision: Literal["no", "bf16"] = "no"
    """bf16: mixed precision, under autocast."""
    channels_last: bool = False
    """Memory format of images and weights."""

    def __post_init__(self) -> None:
        if self.threads is not None:
            checks.at_least(1, threads=self.threads)
        try:
            torch.device(self.device or "cpu")
        except RuntimeError as error:
            raise RunError(f"--device {self.device}: {str(error).splitlines()[0]}") from error

    @property
    def place(self) -> torch.device:
        """The device by default or by name."""
        if self.device is None and torch.accelerator.is_available():
            accelerator = torch.accelerator.current_accelerator()
            assert accelerator is not None
            return accelerator
        return torch.device(self.device or "cpu")

    def start(self) -> torch.device:
        """Set the number of threads of this process; returns the place.

        Raises:
            RunError: there is no such device in this machine.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            torch.empty(0, device=self.place)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise RunError(f"--device {self.device} cannot be used here ({str(error).splitlines()[0]})") from error
        return self.place

    def refuse(self, *names: str) -> None:
        """Raises ``RunError`` where settings without effect on a benchmark are not left at their
        defaults.
        """
        for name in names:
            if getattr(self, name) != getattr(Device(), name):
                raise RunError(f"--{name.replace('_', '-')} has no effect here; leave it out")


On = Annotated[Device, tyro.conf.arg(name="")]
"""The field of a benchmark's settings: on the command line its options stand among the others."""


Tool = pfb.BatchPruner | pfb.Blocker
VARIANTS: dict[str, Callable[[nn.Module, str | None, float], Tool]] = {
    "copies": lambda model, cut, prune: pfb.BatchPruner(prune),
    "uniform": lambda model, cut, prune: pfb.BatchPruner(prune, rule=pfb.Uniform()),
    "paper": lambda model, cut, prune: pfb.attach(model, cut, prune),
    "paper-before": lambda model, cut, prune: pfb.BatchPruner(
        prune, features=pfb.Shallow(model, cut), rule=pfb.RareFirst()
    ),
}
"""What prunes the batches of a model, by the names of ``pfb train --method``."""


class Step:
    """One optimizer step; calling it takes the step on a batch.

    Args:
        setup: the benchmark's settings.
        variant: what prunes, a name of :data:`VARIANTS`; ``None`` for nothing.
        cut: for those that judge by the model's own features.
        prune: the share.
        compile: ``no``, or a mode of ``torch.compile``.

    Attributes:
        pruner, blocker: what prunes before the model, and inside it.

    Raises:
        RunError: no such model, or none that can be cut as asked.
    """

    def __init__(
        self, setup: Any, variant: str | None = None, cut: str | None = None, prune: float = 0.0, compile: str = "no"
    ) -> None:
        torch.manual_seed(0)
        self.setup, self.device = setup, setup.on.place
        self.layout = torch.channels_last if setup.on.channels_last else torch.contiguous_format
        self.model = build(setup.model, setup.classes, 3, setup.image_size)
        self.model = self.model.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        try:
            tool = None if variant is None else VARIANTS[variant](self.model, cut, prune)
        except ValueError as error:
            raise RunError(f"{setup.model}: {error}") from error
        self.pruner = tool if isinstance(tool, pfb.BatchPruner) else None
        self.blocker = tool if isinstance(tool, pfb.Blocker) else None
        if compile != "no":
            self.model.compile(dynamic=False, mode=None if compile == "default" else compile)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=setup.on.precision == "bf16")

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """Random images ``[n, 3, S, S]`` and labels ``[n]`` as the model takes them."""
        image = torch.randn(n, 3, self.setup.image_size, self.setup.image_size, device=self.device)
        return image.to(memory_format=self.layout), torch.randint(self.setup.classes, (n,), device=self.device)

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy of the samples that are kept, under the setup's precision."""
        if self.pruner is not None:
            image, label = self.pruner(image, label)
        with self.autocast:
            output = self.model(image)
            logits = output if isinstance(output, Tensor) else output.logits
            return F.cross_entropy(logits, self.blocker.select(label) if self.blocker else label)

    def __call__(self, image: Tensor, label: Tensor) -> None:
        self.loss(image, label).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.blocker:
            self.blocker.step()

    def saved_bytes(self, image: Tensor, label: Tensor) -> int:
        """What autograd keeps for the backward pass of a batch."""
        with count_saved_bytes() as saved:
            self.loss(image, label)
        return saved.total


def full_memory(size: int, features: int, device: torch.device) -> pfb.NeighbourMemory:
    """A memory that holds as many random rows as it can."""
    memory = pfb.NeighbourMemory(size)
    for _ in range(-(-size // MOST_PER_STEP)):
        memory.accumulate(torch.randn(min(size, MOST_PER_STEP), features, device=device))
        memory.apply()
    return memory
