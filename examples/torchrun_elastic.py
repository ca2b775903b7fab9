"""Several processes through torchrun, with checkpoints: a rank that dies is started again and
nothing diverges.

    torchrun --standalone --nproc-per-node 2 --max-restarts 3 examples/torchrun_elastic.py --folder
    runs/elastic

The same command with ``--nnodes`` and ``--rdzv-endpoint HOST:PORT`` spans several machines. On gloo
(CPU) set ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``: with torch 2.15 a second attempt otherwise finds
the addresses of the first one's dead processes and often fails to connect.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import pfb


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The data of one rank and step, the same in every attempt."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(32, 20, generator=generator)
    return x, (x[:, :5].sum(1) > 0).long()


def main(folder: Path, steps: int = 40, save_every: int = 10, die_at: int | None = None) -> None:
    """Train from the newest checkpoint to the end; rank 1 dies once at step ``die_at``, if
    asked.
    """
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank = dist.get_rank()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2)).to(device)
    pruner = pfb.BatchPruner(prune=0.4)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saved = folder / "state.pt"
    if saved.exists():
        state = torch.load(saved, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        pruner.load_state_dict(state["pruner"])
    while pruner.steps < steps:
        if pruner.steps == die_at and rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os._exit(1)
        x, y = (part.to(device) for part in batch(pruner.steps, rank))
        x, y = pruner(x, y)  # the line: each rank chooses from its own batch, by what all have seen
        F.cross_entropy(parallel(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if pruner.steps % save_every == 0 and rank == 0:  # what it remembers is the same on all ranks
            draft = folder / "state.draft"
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict()}
            torch.save(state, draft)
            draft.replace(saved)
    rows = pruner.density.state_dict()["rows"]
    copies = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(copies, rows)
    assert all(torch.equal(copy, rows) for copy in copies)
    if rank == 0:
        print(f"{pruner.steps} steps on {dist.get_world_size()} ranks, which all hold the same memory")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--die-at", type=int)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    main(options.folder, die_at=options.die_at)
