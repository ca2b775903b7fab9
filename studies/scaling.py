"""What do several processes change? Steps of one and more processes, the bytes that they send, and
on paper what that means for many GPUs.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import pfb
from pfb.lab.bench import checks, output
from pfb.lab.bench.setup import Device, Step, check_models
from pfb.lab.errors import RunError
from pfb.utils.timing import Spread, interleaved_seconds
from studies import paper

START: Literal["spawn", "fork"] = "spawn"


@dataclass(frozen=True)
class ScalingConfig:
    """Time full steps and steps judged by a sketch on CPU processes that talk by gloo, and count
    what they send.
    """

    model: str = "cifar-resnet20"
    batch_size: int = 64
    """Of each process (weak scaling), and of all together (strong)."""
    image_size: int = 32
    classes: int = 10
    processes: tuple[int, ...] = (1, 2)
    prune: float = 0.5
    repeats: int = 5
    speeds: Path | None = None
    """Folder with results of pfb bench speed on a GPU, from which many of it are estimated; by
    default from one assumed step.
    """
    out: Path = Path("runs/scaling.json")
    """All numbers (.json) and, beside it, the tables (.md)."""

    @property
    def on(self) -> Device:
        return Device("cpu", threads=1)

    def __post_init__(self) -> None:
        checks.shares(prune=self.prune)
        checks.at_least(1, image_size=self.image_size, classes=self.classes, repeats=self.repeats)
        checks.at_least(1, processes=self.processes)
        if any(self.batch_size % n for n in self.processes):
            raise RunError(
                f"--batch-size must be a multiple of every number of --processes, for strong scaling (got "
                f"{self.batch_size} and {', '.join(map(str, self.processes))})"
            )


def run(config: ScalingConfig) -> Path:
    """Measure, estimate, write the numbers and the tables; returns their path."""
    device = config.on.start()
    check_models([config.model], config)
    rows = [row for n in config.processes for row in _of_processes(config, n)]
    settings = {name: value for name, value in asdict(config).items() if name != "speeds"}
    numbers = {**output.origin(settings, device), "rows": rows, "paper": paper.estimates(config.speeds)}
    return output.write(config.out, numbers, render)


def render(numbers: dict[str, Any]) -> str:
    """Three Markdown tables: scaling, bytes, and the estimate with its assumptions."""
    alone = {row["batch"]: row["full"]["wall"]["median"] for row in numbers["rows"] if row["processes"] == 1}
    scaling, sent = [], []
    for row in numbers["rows"]:
        full, pruned = row["full"], row["sketch"]
        speedup = alone.get(row["batch"] * row["processes"] if row["scaling"] == "strong" else row["batch"])
        relative = "" if speedup is None else f"{speedup / full['wall']['median']:.2f}"
        times = [f"{1000 * step[clock]['median']:.0f}" for step in (full, pruned) for clock in ("wall", "cpu")]
        saved = f"{100 * (1 - row['ratio']['median']):.1f}"
        scaling.append([row["scaling"], row["processes"], row["batch"], *times, saved, relative])
        if row["processes"] > 1 and row["scaling"] == "weak":
            for step in ("full", "sketch"):
                for kind, bytes in row[step]["sent"].items():
                    counted = row[step]["expected"].get(kind)
                    sent.append([row["processes"], step, kind, f"{bytes:,}", "" if counted is None else f"{counted:,}"])
    header = ["scaling", "processes", "batch of each", "full step, ms", "... CPU", "sketch, ms", "... CPU"]
    table = output.table([*header, "time saved, %", "full step of one process, of that"], scaling)
    bytes_table = output.table(
        ["processes", "step", "what each process gives to a collective", "bytes seen", "bytes by shapes"], sent
    )
    return f"{table}\n{bytes_table}\n{paper.render(numbers['paper'])}"


def expected_bytes(model: nn.Module, features: int, size: int, processes: int) -> dict[str, int]:
    """What each process gives to the collectives of a step, by their shapes: gradients and buffers
    to DDP's, and to the memory's what :func:`studies.paper.given` says.

    Example:
        >>> import torch
        >>> expected_bytes(torch.nn.Linear(3, 4), features=38, size=4096, processes=8)
        {'all-reduce': 64, 'all-gather': 80028}
    """
    gradients = sum(p.numel() for p in model.parameters() if p.requires_grad)
    buffers = sum(x.nbytes for x in model.buffers())
    all_gather = paper.given(size, features, processes)
    given = {"all-reduce": paper.FLOAT * gradients, "broadcast": buffers, "all-gather": all_gather}
    return {kind: bytes for kind, bytes in given.items() if bytes}


KINDS = {"allreduce_": "all-reduce", "broadcast_": "broadcast", "_allgather_base_": "all-gather"}


class Sent(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that this process gives to collectives inside this context, by kind."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.partition("::")[2]
            given = args[1] if name == "_allgather_base_" else args[0]  # the first is what it returns
            tensors = given if isinstance(given, (list, tuple)) else [given]
            bytes = sum(x.nbytes for x in tensors if isinstance(x, torch.Tensor))
            kind = KINDS.get(name, name)
            self.bytes[kind] = self.bytes.get(kind, 0) + bytes
        return func(*args, **(kwargs or {}))


def _of_processes(config: ScalingConfig, processes: int) -> Iterator[dict[str, Any]]:
    """Rows of both kinds of scaling for a number of processes; for one they are the same."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        place = Path(folder) / "rows.pt"
        start_processes(_rank, (config, processes, port, place), processes, start_method=START)  # type: ignore[no-untyped-call]
        yield from torch.load(place)


def _rank(rank: int, config: ScalingConfig, processes: int, port: int, place: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    if processes > 1:
        distributed.init_process_group("gloo", rank=rank, world_size=processes)
    try:
        batches = {"weak": config.batch_size, "strong": config.batch_size // processes}
        rows = [_row(config, processes, kind, n) for kind, n in batches.items() if processes > 1 or kind == "weak"]
        if rank == 0:
            torch.save(rows, place)
    finally:
        if processes > 1:
            distributed.destroy_process_group()


def _row(config: ScalingConfig, processes: int, kind: str, n: int) -> dict[str, Any]:
    steps = {"full": Step(config, config.model), "sketch": Step(config, config.model, {"prune": config.prune})}
    for step in steps.values():
        if processes > 1:
            step.call = DistributedDataParallel(step.model)
    batch = steps["full"].batch(n)
    taken = {name: _Timed(step, batch) for name, step in steps.items()}
    wall = interleaved_seconds(taken, torch.device("cpu"), config.repeats, 1)
    cpu = {name: timed.cpu[-config.repeats :] for name, timed in taken.items()}
    row: dict[str, Any] = {"scaling": kind, "processes": processes, "batch": n}
    for name, step in steps.items():
        with Sent() as sent:
            step(*batch)
        row[name] = {
            "wall": asdict(Spread.of(wall[name])),
            "cpu": asdict(Spread.of(cpu[name])),
            "sent": sent.bytes,
            "expected": _expected(step, processes),
        }
    row["ratio"] = asdict(Spread.of_ratios(cpu["sketch"], cpu["full"]))
    return row


def _expected(step: Step, processes: int) -> dict[str, int]:
    if step.blocker is None:
        return expected_bytes(step.model, 0, 0, processes) | {"all-gather": 0}
    memory = step.blocker.estimator
    assert isinstance(memory, pfb.NeighbourMemory)
    features = memory.state_dict()["rows"].size(1)
    return expected_bytes(step.model, features, memory.size, processes)


class _Timed:
    """A step that notes the processor time of this process, too."""

    def __init__(self, step: Step, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.step, self.batch, self.cpu = step, batch, list[float]()

    def __call__(self) -> None:
        if distributed.is_initialized():
            distributed.barrier()
        begin = time.process_time()
        self.step(*self.batch)
        self.cpu.append(time.process_time() - begin)
