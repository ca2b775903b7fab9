"""Shared fixtures, and what holds for the whole session."""

import gc
import os
import uuid

# The models are small and the machine may be busy: threads that wait for each other cost more than
# they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import psutil
import pytest
import torch

torch.set_num_threads(1)  # where torch was imported before this file
# A process whose first backward comes after the compiler has registered its devices starts threads
# for them, and its forks cannot train. So a backward comes before everything.
torch.ones(1, requires_grad=True).sum().backward()

MARK = "PFB_TEST_SESSION"
HELPERS = ("multiprocessing.resource_tracker", "torch/_inductor/compile_worker")
"""What Python and PyTorch start for themselves and end with the interpreter."""


def pytest_collection_modifyitems(session):
    """Tests that ignore what other packages warn of still fail at what this one does: the session's
    filter comes last.
    """
    session.add_marker(pytest.mark.filterwarnings("error:pfb:UserWarning"))


def pytest_collection_finish():
    """What the imports made stays; a collection that looks through it takes most of a second, and
    trainers collect after every training.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_process_outlives_the_tests():
    """Also those whose parent has ended: they are known by a mark in their environment."""
    os.environ[MARK] = mark = uuid.uuid4().hex
    yield
    ours = [*psutil.Process().children(recursive=True), *(p for p in psutil.process_iter() if _has(p, mark))]
    left = psutil.wait_procs({p for p in ours if not _helps(p)}, timeout=5)[1]
    names = [" ".join(_command(process)) or process.name() for process in left]
    for process in left:
        process.kill()
    assert not names, f"left behind: {names}"


def _has(process, mark):
    try:
        return process.pid != os.getpid() and process.environ().get(MARK) == mark
    except psutil.Error:  # another user's, or gone
        return False


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _helps(process):
    return any(helper in part for part in _command(process) for helper in HELPERS)


@pytest.fixture
def _made_up_times(monkeypatch):
    """For the adviser: a whole step takes 2 seconds, one on what is kept 1, to judge a batch none;
    each is done once.
    """

    def made_up(steps, device, repeats, **options):
        for step in steps.values():
            step()
        return {name: [{"few": 1.0, "judge": 0.0}.get(name, 2.0)] * repeats for name in steps}

    monkeypatch.setattr("pfb.adviser.step_time.interleaved_seconds", made_up)


@pytest.fixture
def _fresh_accelerate():
    """Accelerate keeps its precision for the whole process."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


# Properties are tried on few examples in every run, on many by `make thorough`.


@pytest.fixture(scope="session")
def pictures():
    """1,200 pictures, each of its own colours, detail, and stripes."""
    from studies.group_data import Pictures, _smooth

    g = torch.Generator().manual_seed(0)
    n, side = 1200, 32
    wide, fine = (_smooth(n, 3, side, cells, g) - 0.5 for cells in (4, 12))
    amount, pitch, way = (torch.rand(n, 1, 1, 1, generator=g) for _ in range(3))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    stripes = ((0.3 + pitch) * ((6.28 * way).cos() * x + (6.28 * way).sin() * y)).sin()
    light = 0.3 + 0.4 * torch.rand(n, 3, 1, 1, generator=g)
    shown = light + wide * torch.rand(n, 1, 1, 1, generator=g) + fine * amount + 0.3 * (amount - 0.5) * stripes
    return Pictures((255 * shown.clamp(0, 1)).to(torch.uint8), torch.arange(n) % 4)


hypothesis.settings.register_profile("quick", max_examples=25, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=20_000, deadline=None)
hypothesis.settings.load_profile("quick")
