"""What benchmarks measure, and on what: a training step of a fresh model on random images or
tokens, and the device it runs on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

import pfb
from pfb.density.neighbours import MOST_PER_STEP
from pfb.lab.bench import checks
from pfb.lab.bench.variants import VARIANTS
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


GPT = "gpt2"
"""The name of GPT-2 (small), the one model that is no classifier of images."""


class Setup(Protocol):
    """What a benchmark's settings say of its steps."""

    @property
    def image_size(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def on(self) -> Device: ...


class Step:
    """One optimizer step; calling it takes the step on a batch.

    Args:
        setup: the benchmark's settings.
        model: a classifier of images as in ``pfb train``; or :data:`GPT`, on sequences of as many
            tokens as ``image_size`` says, out of as many as there are ``classes``.
        variant: what prunes, a name of :data:`.variants.VARIANTS`; ``None`` for nothing.
        cut: for those that judge by the model's own features.
        prune: the share.
        compile: ``no``, or a mode of ``torch.compile``.

    Attributes:
        pruner, blocker: what prunes before the model, and inside it.

    Raises:
        RunError: no such model, or none that can be cut as asked.
    """

    def __init__(
        self,
        setup: Setup,
        model: str,
        variant: str | None = None,
        cut: str | None = None,
        prune: float = 0.0,
        compile: str = "no",
    ) -> None:
        torch.manual_seed(0)
        self.setup, self.device = setup, setup.on.place
        self.layout = torch.channels_last if setup.on.channels_last else torch.contiguous_format
        self.is_gpt = model == GPT
        self.model = network(model, setup)
        self.model = self.model.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        try:
            tool = None if variant is None else VARIANTS[variant](self.model, cut, prune)
        except ValueError as error:
            raise RunError(f"{model}: {error}") from error
        self.pruner = tool if isinstance(tool, pfb.BatchPruner) else None
        self.blocker = tool if isinstance(tool, pfb.Blocker) else None
        if compile != "no":
            self.model.compile(dynamic=False, mode=None if compile == "default" else compile)
        self.call: nn.Module = self.model  # or what wraps it
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=setup.on.precision == "bf16")

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """Random images ``[n, 3, S, S]`` and labels ``[n]`` as the model takes them; or tokens
        ``[n, S]`` and those to come.
        """
        if self.is_gpt:
            tokens = torch.randint(self.setup.classes, (n, self.setup.image_size + 1), device=self.device)
            return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        image = torch.randn(n, 3, self.setup.image_size, self.setup.image_size, device=self.device)
        return image.to(memory_format=self.layout), torch.randint(self.setup.classes, (n,), device=self.device)

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy of the samples that are kept, under the setup's precision."""
        return self.forward(*((image, label) if self.pruner is None else self.pruner(image, label)))

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """The same of a batch that is pruned already, where that is done before the model."""
        with self.autocast:
            output = self.call(image)
            logits = output if isinstance(output, Tensor) else output.logits
            label = self.blocker.select(label) if self.blocker else label
            return F.cross_entropy(logits.flatten(0, -2), label.flatten())

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


def network(name: str, setup: Setup) -> nn.Module:
    """A fresh model by name."""
    if name != GPT:
        return build(name, setup.classes, 3, setup.image_size)
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"vocab_size": setup.classes, "n_positions": setup.image_size}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None, use_cache=False))


def full_memory(size: int, features: int, device: torch.device) -> pfb.NeighbourMemory:
    """A memory that holds as many random rows as it can."""
    memory = pfb.NeighbourMemory(size)
    for _ in range(-(-size // MOST_PER_STEP)):
        memory.accumulate(torch.randn(min(size, MOST_PER_STEP), features, device=device))
        memory.apply()
    return memory


def check_models(names: Iterable[str], setup: Setup) -> None:
    """Build each model once, so that a name nobody knows is refused before anything is measured."""
    for name in names:
        network(name, setup)


def first_block(model: nn.Module, cut: str) -> str | None:
    """The first block of the stage that ends at the cut, if the stage is several blocks in
    a row.
    """
    stage = model.get_submodule(cut)
    return f"{cut}.0" if isinstance(stage, nn.Sequential) and len(stage) > 1 else None
