"""Time and memory of a whole training step, and of the choice alone.

All ways to make a step take turns, so that whatever the device does meanwhile meets all of them.
Shape suffixes: N samples, T tokens.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pfb
from studies.gpu.networks import model_of

Step = Callable[[], Any]
Settings = dict[str, Any]

BATCHES = 4  # made beforehand, on the device
WARM_UP = 4  # steps of each kind
LEAST_ROUNDS = 5


def kept_of(n: int, prune: float) -> int:
    """Samples that a share leaves of ``n``."""
    return n - math.floor(prune * n + 1e-9)


def batches_of(settings: Settings, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Random inputs and labels. Their values decide no step's time."""
    n, size, tiny = settings["batch"], settings["size"], settings["tiny"]
    generator = torch.Generator(device).manual_seed(settings["seed"])
    if settings["model"] == "gpt2":
        high = 256 if tiny else 50_257
        drawn = [torch.randint(high, (n, size), generator=generator, device=device) for _ in range(BATCHES)]
        return [(tokens, tokens) for tokens in drawn]
    return [
        (
            torch.randn(n, 3, size, size, generator=generator, device=device).to(memory_format=torch.channels_last),
            torch.randint(10, (n,), generator=generator, device=device),
        )
        for _ in range(BATCHES)
    ]


def loss_of(output: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy: of a class, or of each next token."""
    if output.dim() == 3:
        output, labels = output[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(output.float(), labels)


# The ways to make a step


def pruner_of(variant: str, model: nn.Module, prune: float) -> pfb.BatchPruner:
    """What prunes before the model."""
    if variant == "uniform":
        return pfb.BatchPruner(prune, rule=pfb.Uniform())
    if variant == "paper-before":
        return pfb.BatchPruner(prune, features=pfb.Shallow(model), rule=pfb.RareFirst())
    return pfb.BatchPruner(prune)


def steps_of(settings: Settings, device: torch.device) -> dict[str, Training]:
    """A whole training step of each variant, by its name."""
    found: dict[str, Training] = {}
    models = [plain := model_of(settings, device)]
    batches = batches_of(settings, device)
    fewer = [tuple(part[: kept_of(len(x), settings["prune"])] for part in (x, y)) for x, y in batches]
    optimizer = optimizer_of(plain, settings)
    for name in settings["variants"]:
        if name == "paper":
            models.append(attached := model_of(settings, device))
            blocker = pfb.attach(attached, prune=settings["prune"])
            found[name] = Training(attached, optimizer_of(attached, settings), batches, device, blocker=blocker)
            while settings["mode"] == "compiled" and not blocker.density.ready:
                found[name]()  # what a blocker learns from its first batches would compile the model again
            continue
        pruner = None if name in ("full", "ideal") else pruner_of(name, plain, settings["prune"])
        found[name] = Training(plain, optimizer, fewer if name == "ideal" else batches, device, pruner=pruner)
    for model in models if settings["mode"] == "compiled" else ():
        model.compile(dynamic=False, backend=settings["backend"])
    return found


def optimizer_of(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD with momentum; for GPT-2 AdamW."""
    if settings["model"] == "gpt2":
        return torch.optim.AdamW(model.parameters(), 1e-5, foreach=True)
    return torch.optim.SGD(model.parameters(), 1e-4, 0.9, weight_decay=1e-4, foreach=True)


class Training:
    """Calling it makes one step."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: list[Any],
        device: torch.device,
        pruner: pfb.BatchPruner | None = None,
        blocker: pfb.Blocker | None = None,
    ) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self.pruner, self.blocker = pruner, blocker
        self.batches = itertools.cycle(batches)
        self.samples = 0

    def __call__(self) -> None:
        x, labels = next(self.batches)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            if self.pruner is not None:
                x, labels = (self.pruner(x),) * 2 if labels is x else self.pruner(x, labels)
            output = self.model(x)
        self.samples = len(output)
        if self.blocker is not None:
            labels = self.blocker.select(labels)
        loss_of(output, labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.blocker is not None:
            self.blocker.step()

    def state_bytes(self) -> int:
        """Of parameters and the optimizer's state."""
        kept = [x for state in self.optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
        return sum(x.nbytes for x in (*self.model.parameters(), *kept))


# What is measured


def step_times(settings: Settings, device: torch.device) -> dict[str, Any]:
    """Seconds of a step, round by round, and the memory that it takes beyond weights and inputs."""
    torch.backends.cudnn.benchmark = True
    begun = time.monotonic()
    steps = steps_of(settings, device)
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    wait(device)
    warm_up = time.monotonic() - begun
    n, kept = settings["batch"], kept_of(settings["batch"], settings["prune"])
    samples = {name: step.samples for name, step in steps.items()}
    if samples != {name: n if name == "full" else kept for name in steps}:
        raise RuntimeError(f"of {n} samples {kept} should go on, and what went on is {samples}")
    if settings.get("only_warm_up"):
        return {"warm_up_seconds": round(warm_up, 1)}
    peaks = {name: peak_bytes(step, device) for name, step in steps.items()}
    times, host = in_turns(steps, device, settings["seconds"], settings["block"])
    return {
        "warm_up_seconds": round(warm_up, 1),
        "kept": kept,
        "step_seconds": times,
        "launch_seconds": host,
        "peak_bytes": peaks,
        "state_bytes": steps["full"].state_bytes(),
    }


def judging_times(settings: Settings, device: torch.device) -> dict[str, Any]:
    """Seconds of a pruner's call alone, with a memory that is full."""
    batches = batches_of(settings, device)
    pruner = pfb.BatchPruner(0.4, density=pfb.NeighbourMemory(settings["memory"]))
    given = itertools.cycle([(x,) if x is y else (x, y) for x, y in batches])
    for _ in range(min(settings["memory"] // settings["batch"] + WARM_UP, 400)):
        pruner(*next(given))
    times, host = in_turns({"judging": lambda: pruner(*next(given))}, device, settings["seconds"], settings["block"])
    return {"call_seconds": times["judging"], "launch_seconds": host["judging"]}


def waits(settings: Settings, device: torch.device) -> dict[str, Any]:
    """Whether a call of each tool makes the host wait for the device, as PyTorch tells; where."""
    model, attached = model_of(settings, device), model_of(settings, device)
    x, labels = batches_of(settings, device)[0]
    blocker = pfb.attach(attached, prune=0.4)
    calls: dict[str, Step] = {}
    for name in ("copies", "uniform", "paper-before"):
        calls[name] = functools.partial(pruner_of(name, model, 0.4), x, labels)

    def stop_inside() -> None:
        attached(x)
        blocker.select(labels)
        blocker.step()

    calls["paper"] = stop_inside
    found = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        wait(device)
        found[name] = _where_it_waits(call, device)
    return {"waits": found}


def _where_it_waits(call: Step, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "not asked: no GPU"
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "pfb" in f.filename]
        return f"{frames[-1].filename.rpartition('src/')[2]}:{frames[-1].lineno}: {error}" if frames else str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def in_turns(
    steps: Mapping[str, Step], device: torch.device, seconds: float, block: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each step, one number per round, which is the mean of a block of steps; and of
    those the median that the host took to launch it.

    Rounds go on for so many seconds, and are at least five. In each, another step begins.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    launches: dict[str, list[float]] = {name: [] for name in steps}
    end = time.monotonic() + seconds
    for names in _rotated(list(steps)):
        for name in names:
            wait(device)
            begun = time.perf_counter()
            for _ in range(block):
                steps[name]()
            launched = time.perf_counter()
            wait(device)
            times[name].append(round((time.perf_counter() - begun) / block, 7))
            launches[name].append((launched - begun) / block)
        if len(times[names[0]]) >= LEAST_ROUNDS and time.monotonic() > end:
            break
    return times, {name: round(statistics.median(taken), 7) for name, taken in launches.items()}


def _rotated(names: list[str]) -> Iterator[list[str]]:
    for i in itertools.count():
        first = i % len(names)
        yield names[first:] + names[:first]


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """Most memory that a step allocates at once, beyond what was allocated before it."""
    if device.type != "cuda":
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    wait(device)
    return torch.cuda.max_memory_allocated() - before


def wait(device: torch.device) -> None:
    """For all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def emptied(device: torch.device) -> Iterator[None]:
    """Leaves the device's memory and the compiler as they were before."""
    try:
        yield
    finally:
        torch._dynamo.reset()
        if device.type == "cuda":
            import gc

            gc.collect()
            torch.cuda.empty_cache()
