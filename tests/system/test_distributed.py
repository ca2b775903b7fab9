"""Two gloo processes: one estimate on all ranks, gradients of a single-process reference,
no hang.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch._dynamo  # or every rank would load it for itself
import torch.distributed as dist
from torch import nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing.spawn import ProcessException, start_processes
from torch.nn.parallel import DistributedDataParallel

import pfb
from tests import reference, zoo

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

WORLD = 2


def _entry(rank, function, folder, arguments):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    try:
        function(rank, *arguments)
        dist.barrier()
    except BaseException:
        with open(f"{folder}/error{rank}", "w") as file:
            traceback.print_exc(file=file)
        os._exit(1)  # do not wait for the other rank
    dist.destroy_process_group()


def on_two_ranks(function, *arguments, seconds=120):
    with tempfile.TemporaryDirectory() as folder:
        context = start_processes(
            _entry, args=(function, folder, arguments), nprocs=WORLD, join=False, start_method="fork"
        )
        try:
            deadline = time.monotonic() + seconds
            while not context.join(timeout=1):
                if time.monotonic() > deadline:
                    pytest.fail(f"the ranks still run after {seconds} seconds")
        except ProcessException:
            errors = [Path(folder, name).read_text() for name in sorted(os.listdir(folder)) if name.startswith("error")]
            pytest.fail("\n".join(errors) or "a rank died")
        finally:
            for process in context.processes:
                process.kill()
                process.join()


def gathered(value):
    out = [None] * WORLD
    dist.all_gather_object(out, value)
    return out


def data(rank, step, n=20):
    g = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=g), torch.randint(5, (n,), generator=g)


def build(**arguments):
    torch.manual_seed(0)
    model = zoo.SmallNet().double()
    settings = {"rule": pfb.RareFirst(0.0), "density": pfb.MovingCenters(8, 0.1), **arguments}
    return model, pfb.attach(model, "layer1", settings.pop("prune", 0.4), **settings)


def _gradients_and_estimate(rank):
    model, blocker = build()
    torch.manual_seed(0)
    plain = zoo.SmallNet().double()
    parallel = DistributedDataParallel(model)
    literal = reference.Estimator(8, 0.1)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain)]
    for step in range(5):
        x, y = data(rank, step)
        nn.functional.cross_entropy(parallel(x), blocker.select(y)).backward()
        kept = gathered(blocker.selection.indices)
        # One process that sees both ranks' kept samples
        everything = [data(r, step) for r in range(WORLD)]
        for optimizer in optimizers[1:]:
            optimizer.zero_grad()
        loss = sum(
            nn.functional.cross_entropy(plain(x_r[k]), y_r[k]) for (x_r, y_r), k in zip(everything, kept, strict=True)
        )
        (loss / WORLD).backward()
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-11)
        with torch.no_grad():
            features = [
                plain.layer1(plain.stem(x_r)).mean((2, 3))[k] for (x_r, _), k in zip(everything, kept, strict=True)
            ]
        in_turn = torch.stack(features, 1).flatten(0, 1) if step == 0 else torch.cat(features)
        literal.step(in_turn)
        blocker.step()
        torch.testing.assert_close(
            blocker.density.centers.double(), torch.tensor(literal.centers).double(), rtol=1e-4, atol=1e-5
        )
        states = gathered(blocker.density.state_dict())
        for name in ("centers", "counts", "mean", "variance"):
            assert torch.equal(states[0][name], states[1][name]), name
        for optimizer in optimizers:
            optimizer.step()
        parallel.zero_grad()


def test_gradients_and_estimate_equal_a_single_process():
    on_two_ranks(_gradients_and_estimate)


def _one_collective_per_step(rank, arguments):
    calls = []
    original = dist.all_reduce

    def counting(tensor, *args, **kwargs):
        calls.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    dist.all_reduce = counting
    gather = dist.all_gather_into_tensor

    def counting_gather(out, x, group=None):
        calls.append(x.numel())
        return gather(out, x, group=group)

    dist.all_gather_into_tensor = counting_gather
    schedule = pfb.window(0.4, start=0.2, stop=0.8)
    model, blocker = build(prune=schedule, total_steps=10, **arguments)
    per_step = []
    for step in range(10):
        calls.clear()
        x, _ = data(rank, step)
        model(x).sum().backward()
        assert not calls, "a forward must not communicate"
        blocker.step()
        per_step.append(len(calls))
    assert per_step == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]


def test_one_collective_per_step_and_none_when_pruning_is_off():
    on_two_ranks(_one_collective_per_step, {})
    on_two_ranks(_one_collective_per_step, {"density": pfb.NeighbourMemory(64)})


def _uneven(rank):
    """Other batch sizes on each rank, also none at all, also while centers are being gathered."""
    model, blocker = build(density=pfb.MovingCenters(24, 0.1))
    for step, sizes in enumerate([(20, 0), (0, 7), (20, 20), (20, 0), (1, 20), (3, 17)]):
        x, _ = data(rank, step, n=sizes[rank])
        model(x).sum().backward()
        blocker.step()
        ready = gathered(blocker.density.ready)
        assert ready[0] == ready[1]
    assert blocker.density.ready
    centers = gathered(blocker.density.centers)
    assert torch.equal(*centers)


def test_uneven_and_empty_batches():
    on_two_ranks(_uneven)


def _of_different_states(rank, arguments):
    model, blocker = build(**arguments)
    for step in range(3):
        model(data(rank, step)[0])
        blocker.step()
    state = blocker.state_dict()
    state["density"]["updates"] += rank
    blocker.load_state_dict(state)
    model(data(rank, 3)[0])
    with pytest.raises(RuntimeError, match="the ranks called step.. unevenly"):
        blocker.step()


def test_ranks_that_are_at_different_steps_are_refused():
    """One resumed from another checkpoint, for instance."""
    on_two_ranks(_of_different_states, {})
    on_two_ranks(_of_different_states, {"density": pfb.NeighbourMemory(64)})


def _mixed(rank):
    """The first rank forgets one step; the other's next one then sums what belongs to two."""
    model, blocker = build()
    for step in range(4):
        model(data(rank, step)[0])
        if (rank, step) != (0, 2):
            blocker.step()
    if rank == 0:
        model(data(rank, 4)[0])
        blocker.step()
    assert int(blocker.density.counts.sum()) == 8 + 7 * 12


def test_a_step_that_one_rank_forgets_is_not_noticed():
    """Nothing tells it from gradient accumulation: the sums mix two steps, and without one more the
    other rank would wait.
    """
    on_two_ranks(_mixed)


def _one_memory(rank):
    """Copies are seen that lie on the other rank, and all ranks remember the same; a call is one
    collective, and each rank chooses from its own batch.
    """
    pruner = pfb.BatchPruner(0.4, density=pfb.NeighbourMemory(50))
    literal, calls = reference.Memory(50), []
    gather = dist.all_gather_into_tensor

    def counting(out, x, group=None):
        calls.append(x.numel())
        return gather(out, x, group=group)

    dist.all_gather_into_tensor = counting
    for step, sizes in enumerate([(20, 20), (20, 1), (0, 7), (20, 20)]):
        x, y = data(rank, step, n=sizes[rank])
        x, kept = pruner(x.float(), torch.arange(len(y)))
        selection = pruner.selection
        assert kept.tolist() == (list(range(len(y))) if selection is None else selection.indices.tolist())
        literal.add(torch.cat(gathered(pruner.features(data(rank, step, n=sizes[rank])[0]))))
    assert len(calls) == 4
    states = gathered(pruner.density.state_dict())
    for name, value in states[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][name])), name
    rows = pruner.density.state_dict()["rows"]
    torch.testing.assert_close(rows.double(), torch.tensor(literal.rows, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    choices = gathered(pruner.selection.indices.tolist())
    assert choices[0] != choices[1]


def test_all_ranks_have_one_memory():
    on_two_ranks(_one_memory)


def _different_settings(rank):
    for make, message in (
        (lambda: pfb.BatchPruner(0.4 + 0.1 * rank), "`prune` is .*0.4.* on rank 0 and .*0.5.* on rank 1"),
        (lambda: pfb.BatchPruner(0.4, seed=rank), "`seed` is 0 on rank 0 and 1 on rank 1"),
        (lambda: pfb.BatchPruner(0.4, density=pfb.NeighbourMemory(50 + rank)), "`density`"),
    ):
        pruner = make()
        with pytest.raises(RuntimeError, match=message):
            pruner(data(rank, 0)[0].float())
        assert pruner.steps == 0
    model, blocker = build(prune=0.4 + 0.1 * rank)
    model(data(rank, 0)[0]).sum().backward()
    with pytest.raises(RuntimeError, match="the ranks have different settings: `prune`.*attach with the same"):
        blocker.step()


def test_ranks_of_different_settings_are_refused_by_name():
    on_two_ranks(_different_settings)


def _one_batch_on_both(rank):
    """As tensor-parallel ranks have it."""
    with pytest.raises(RuntimeError, match="ranks 0 and 1 hold the same batch.*`group=`"):
        pfb.BatchPruner(0.4)(data(0, 0)[0].float())
    groups = [dist.new_group([r]) for r in range(WORLD)]
    pruner = pfb.BatchPruner(0.4, group=groups[rank], density=pfb.NeighbourMemory(50))
    for step in range(70):
        pruner(data(0, step)[0].float())
        choices = gathered(pruner.selection.indices.tolist())
        assert choices[0] == choices[1]
    assert int(pruner.density.state_dict()["counts"][1]) == 50
    with pytest.raises(TypeError, match="`group=` cannot be copied"):
        multiprocessing.reduction.ForkingPickler.dumps(pruner)
    differs = pfb.BatchPruner(0.4, group=groups[rank], seed=rank)
    refused = 0
    try:
        differs(data(0, 0)[0].float())
    except RuntimeError as error:
        refused = int("must hold the same batch and choose the same samples" in str(error))
    assert sum(gathered(refused)) == 1, "one rank comes second, and says so"


def test_ranks_that_hold_the_same_batch_choose_the_same():
    on_two_ranks(_one_batch_on_both)


def _full_batches(rank):
    rows = torch.arange(rank, 100, 2)
    plain = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows[:, None].float(), rows), batch_size=10)
    loader = pfb.prune_batches(plain, 0.5, fill=True, density=pfb.NeighbourMemory(20))
    for _ in range(3):
        lengths = gathered((len(loader), [len(y) for _, y in loader]))
        assert lengths[0] == lengths[1]
        assert set(lengths[0][1]) == {10}
    assert loader.pruner.density.epoch == 100


def test_filled_loaders_take_equally_many_steps_on_all_ranks():
    on_two_ranks(_full_batches)


def _accumulation(rank):
    model, blocker = build()
    parallel = DistributedDataParallel(model)
    for step in range(4):
        with parallel.no_sync():
            x, y = data(rank, 2 * step)
            nn.functional.cross_entropy(parallel(x), blocker.select(y)).backward()
        x, y = data(rank, 2 * step + 1)
        nn.functional.cross_entropy(parallel(x), blocker.select(y)).backward()
        blocker.step()
    states = gathered(blocker.density.state_dict())
    assert torch.equal(states[0]["centers"], states[1]["centers"])
    assert int(blocker.density.counts.sum()) == 8 + 3 * WORLD * 2 * 12


def test_gradient_accumulation_without_sync():
    on_two_ranks(_accumulation)


def _fully_sharded(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.manual_seed(0)
    model, plain = zoo.SmallNet(), zoo.SmallNet()
    plain.load_state_dict(model.state_dict())
    blocker = pfb.attach(model, "layer1", 0.4, density=pfb.MovingCenters(8, 0.1))
    mesh = init_device_mesh("cpu", (WORLD,))
    for module in (model.layer1, model.layer2, model):
        fully_shard(module, mesh=mesh)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain)]
    for step in range(4):
        x, y = data(rank, step)
        out = model(x.float())
        assert out.shape == (12, 5)
        nn.functional.cross_entropy(out, blocker.select(y)).backward()
        losses = []
        for r, kept in enumerate(gathered(blocker.selection.indices)):
            x_r, y_r = data(r, step)
            losses.append(nn.functional.cross_entropy(plain(x_r[kept].float()), y_r[kept]))
        (sum(losses) / WORLD).backward()
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            assert isinstance(a.grad, DTensor)
            torch.testing.assert_close(a.grad.full_tensor(), b.grad, rtol=1e-4, atol=1e-5)
        blocker.step()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    centers = gathered(blocker.density.centers)
    assert torch.equal(*centers)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x.float()), plain.eval()(x.float()), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.__version__ < "2.9", reason="on a CPU, FSDP2 fails in torch 2.6 and sums gradients up to 2.8")
def test_fully_sharded():
    on_two_ranks(_fully_sharded)


def test_wrapped_models_are_refused():
    def refuse(rank):
        model = DistributedDataParallel(zoo.mlp(6, 8, 3))
        with pytest.raises(TypeError, match="before wrapping"):
            pfb.attach(model, "module.0", 0.4)

    on_two_ranks(refuse)


def test_a_run_without_a_process_group_needs_none():
    assert not dist.is_initialized()
    model, blocker = build()
    for step in range(3):
        model(data(0, step)[0]).sum().backward()
        blocker.step()
    assert blocker.density.ready


ELASTIC = Path(__file__).parents[2] / "examples" / "torchrun_elastic.py"
ON_CPU = mock.patch.object(torch.cuda, "is_available", return_value=False)


def _straight(rank, folder):
    """The example inside of the group that is there."""
    with ON_CPU, mock.patch.object(dist, "init_process_group"), mock.patch.object(dist, "destroy_process_group"):
        runpy.run_path(str(ELASTIC))["main"](folder)


def _attempt(folder):
    """The example's script as one rank of torchrun; leaves a note that it was started."""
    rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    (folder / f"rank{rank}-attempt{attempt}").touch()
    with ON_CPU, mock.patch.object(sys, "argv", [str(ELASTIC), "--folder", str(folder), "--die-at", "25"]):
        runpy.run_path(str(ELASTIC), run_name="__main__")


def _launched(folder):
    """What ``torchrun --standalone --nproc-per-node 2 --max-restarts 3`` does, but that its ranks
    are forked, and need not load PyTorch anew.
    """
    warnings.simplefilter("ignore")
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # see the example
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=WORLD,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=3,
        start_method="fork",
    )
    elastic_launch(config, _attempt)(folder)


def test_a_rank_that_dies_is_started_again_and_ends_as_if_it_had_not(tmp_path):
    """Rank 1 is gone at step 25, both start again from step 20, and the end is the same bit by
    bit.
    """
    for name in ("straight", "broken"):
        (tmp_path / name).mkdir()
    on_two_ranks(_straight, tmp_path / "straight")
    launcher = multiprocessing.get_context("fork").Process(target=_launched, args=(tmp_path / "broken",))
    launcher.start()
    launcher.join(timeout=300)
    launcher.terminate()  # killed, it would leave its ranks behind
    launcher.join()
    assert launcher.exitcode == 0
    started = {place.name for place in (tmp_path / "broken").glob("rank*")}
    # More attempts may follow: gloo now and then aborts while a finished process exits.
    assert started >= {f"rank{rank}-attempt{attempt}" for rank in (0, 1) for attempt in (0, 1)}
    straight, broken = (torch.load(tmp_path / name / "state.pt") for name in ("straight", "broken"))
    assert straight["pruner"]["step"] == broken["pruner"]["step"] == 40
    assert torch.equal(straight["pruner"]["density"]["rows"], broken["pruner"]["density"]["rows"])
    assert all(torch.equal(a, broken["model"][name]) for name, a in straight["model"].items())
