"""A run loses nothing, whatever stops it and whoever else is at its folder."""

import signal
import socket
from collections import Counter

import pytest
import torch

from pfb.lab.train.output.folder import RunFolder
from tests.lab.train.forks import Forks
from tests.lab.train.runs import FLAGS, TEST_SAMPLES, end_of

TRAIN = ("train", *FLAGS, "--log-every", "3")

TOGETHER = (*TRAIN, "--method", "copies", "--ema", "0.9")


@pytest.fixture(scope="module")
def forks():
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="module")
def straight(forks, tmp_path_factory):
    """The end of a run that nobody stops, and how often it changes its folder."""
    run = tmp_path_factory.mktemp("straight") / "run"
    ended = forks.pfb(*TRAIN, "--out", run, stop=(run, -1, signal.SIGKILL))
    assert ended.code == 0, ended.error
    return end_of(run), ended.changes


def stop_and_go_on(forks, run, change, signal_number):
    """Stop a run at a change of its folder, do what it says, and return its end."""
    stopped = forks.pfb(*TRAIN, "--out", run, stop=(run, change, signal_number))
    begun = bool(RunFolder(run).checkpoints())
    if signal_number == signal.SIGKILL:
        assert stopped.code == -signal.SIGKILL
    else:
        assert stopped.code == 130, stopped.error
        assert "Traceback" not in stopped.error
        assert (f"pfb train --resume {run}" if begun else "start again, with --overwrite") in stopped.error
    again = ("train", "--resume", run) if begun else (*TRAIN, "--overwrite", "--out", run)
    ended = forks.pfb(*again)
    assert ended.code == 0, ended.error
    return end_of(run)


@pytest.mark.parametrize(
    ("share", "signal_number"),
    [
        (0.05, signal.SIGKILL),
        (0.45, signal.SIGKILL),
        (0.9, signal.SIGKILL),
        (0.05, signal.SIGINT),
        (0.6, signal.SIGINT),
    ],
)
def test_a_run_stopped_at_some_change_of_its_folder_ends_bit_identical(forks, straight, tmp_path, share, signal_number):
    end, changes = straight
    assert stop_and_go_on(forks, tmp_path / "run", 1 + int(share * changes), signal_number) == end


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("change", range(1, 100))
def test_a_run_stopped_at_any_change_of_its_folder_ends_bit_identical(forks, straight, tmp_path, change, signal_number):
    end, changes = straight
    if change > changes:
        pytest.skip(f"a run makes {changes} changes")
    assert stop_and_go_on(forks, tmp_path / "run", change, signal_number) == end


def half_done(forks, run):
    stopped = forks.pfb(*TRAIN, "--out", run, stop=(run, 46, signal.SIGKILL))
    assert stopped.code == -signal.SIGKILL
    assert [p.name for p in RunFolder(run).checkpoints()] == ["checkpoint_0001"]


@pytest.mark.parametrize("times", [2, pytest.param(8, marks=pytest.mark.slow)], ids=["twice", "8-times"])
def test_of_two_that_resume_a_run_at_once_exactly_one_goes_on(forks, straight, tmp_path, times):
    for number in range(times):
        run = tmp_path / str(number)
        half_done(forks, run)
        ended = forks.together(*[{"arguments": ["train", "--resume", run]}] * 2)
        went_on = Counter("finished already" not in e.output for e in ended if e.code == 0)
        assert went_on[True] == 1, ended
        assert all("another process trains in" in e.error for e in ended if e.code), ended
        assert end_of(run) == straight[0]


class TestTwoProcesses:
    """Which train together, as torchrun and accelerate launch start them."""

    @pytest.fixture
    def port(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return free.getsockname()[1]

    def test_evaluate_every_sample_once_and_resume(self, forks, tmp_path, port):
        run = tmp_path / "run"
        assert [e.code for e in forks.ranks(port, *TOGETHER, "--out", run)] == [0, 0]
        summary, end = RunFolder(run).summary(), end_of(run)
        assert summary["processes"] == 2
        assert summary["samples"] == 2 * 192
        assert 0 < summary["trained_samples"] < summary["samples"]
        right = summary["test_accuracy"] * TEST_SAMPLES
        assert right == pytest.approx(round(right), abs=1e-6), "each test sample counts once"
        records = RunFolder(run).records()
        stopped = int(records["seen"].sum() - records["kept"].sum())
        assert stopped == summary["samples"] - summary["trained_samples"], "the records are those of both processes"
        (run / "summary.json").unlink()
        assert [e.code for e in forks.ranks(port, "train", "--resume", run)] == [0, 0]
        assert end_of(run) == end

    def test_a_run_of_one_is_not_continued_by_two(self, forks, tmp_path, port):
        half_done(forks, tmp_path / "run")
        for ended in forks.ranks(port, "train", "--resume", tmp_path / "run"):
            assert ended.code == 1
            assert "as many processes as wrote it, 1 (got 2)" in ended.error
            assert "Traceback" not in ended.error

    def test_a_run_of_two_is_not_continued_by_one(self, forks, tmp_path, port):
        run = tmp_path / "run"
        forks.ranks(port, *TOGETHER, "--epochs", "1", "--out", run)
        (run / "summary.json").unlink()
        ended = forks.pfb("train", "--resume", run)
        assert ended.code == 1
        assert "as many processes as wrote it, 2 (got 1)" in ended.error
        state = torch.load(RunFolder(run).checkpoints()[-1] / "state.pt", weights_only=True)
        assert len(state["parts"]["random"]["by_process"]) == 2
