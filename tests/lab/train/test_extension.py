"""More epochs for a finished run, and runs that stop when their time is over."""

import json
import time

import pytest
import torch

from pfb.lab.errors import RunError
from pfb.lab.train import loop
from pfb.lab.train.budget import Budget
from pfb.lab.train.loop import Training, train
from pfb.lab.train.output.extension import extended
from pfb.lab.train.output.folder import RunFolder
from pfb.lab.train.paired import control
from tests.lab.train.runs import config, content, end_of, interrupt_evaluation, weights

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


def extend(run, epochs):
    return train(extended(RunFolder(run).config(), epochs), resume=True)


class TestMoreEpochs:
    @pytest.mark.parametrize("lr_schedule", ["onecycle", "cosine", "constant"])
    def test_learning_rate_and_window_begin_anew_and_all_else_goes_on(self, run, lr_schedule, monkeypatch, capsys):
        train(config(run, lr_schedule=lr_schedule, log_every=1, start=0.0, stop=0.5, ema=0.9, track="none"))
        first, finished = RunFolder(run).steps(), weights(run)
        begun = []
        epoch = loop.Training.epoch

        def noting(self, number, on_step):
            begun.append(self.plain_model.state_dict()["fc.weight"].clone())
            return epoch(self, number, on_step)

        monkeypatch.setattr(loop.Training, "epoch", noting)
        summary = extend(run, 4)
        assert torch.equal(begun[0], finished["fc.weight"])
        assert "Epochs 3 to 4 are a cycle of their own" in " ".join(capsys.readouterr().out.split())
        second = RunFolder(run).steps()[12:]
        assert [line["step"] for line in RunFolder(run).steps()] == list(range(1, 25))
        assert [line["pruned_share"] for line in second] == [line["pruned_share"] for line in first]
        rates = [line["lr"] for line in RunFolder(run).epochs()]
        assert rates[2:] == pytest.approx(rates[:2])
        assert summary["samples"] == 4 * 192
        assert summary["full_samples"] == 4 * 192
        assert [line["epoch"] for line in RunFolder(run).epochs()] == [1, 2, 3, 4]

    def test_the_optimizers_averages_go_on_but_not_its_rate(self, run, monkeypatch):
        train(config(run, track="none"))
        old = torch.load(RunFolder(run).checkpoints()[-1] / "state.pt", weights_only=True)["parts"]["optimizer"]
        training = Training(extended(RunFolder(run).config(), 4))
        training._load()
        new = training.optimizer.state_dict()
        assert torch.equal(new["state"][0]["momentum_buffer"], old["state"][0]["momentum_buffer"])
        fresh = Training(config(run.parent / "fresh", track="none")).optimizer.state_dict()
        assert new["param_groups"] == fresh["param_groups"]
        assert old["param_groups"] != fresh["param_groups"]

    def test_an_interrupted_extension_ends_bit_identical(self, tmp_path, monkeypatch):
        runs = tmp_path / "straight", tmp_path / "broken"
        for run in runs:
            train(config(run, epochs=1, track="none"))
        extend(runs[0], 3)
        for at in (1, 2):  # within its first epoch, and its second
            interrupt_evaluation(monkeypatch, at)
            with pytest.raises(KeyboardInterrupt, match="continue with"):
                extend(runs[1], 3) if at == 1 else train(RunFolder(runs[1]).config(), resume=True)
            monkeypatch.undo()
        train(RunFolder(runs[1]).config(), resume=True)
        assert end_of(runs[1]) == end_of(runs[0])

    def test_twice(self, run):
        train(config(run, epochs=1, track="none"))
        assert extend(run, 2)["config"]["extended_from"] == 1
        assert extend(run, 3)["config"]["extended_from"] == 2
        assert len(RunFolder(run).epochs()) == 3

    def test_only_a_finished_run_and_only_more(self, run, monkeypatch):
        interrupt_evaluation(monkeypatch, at=2)
        with pytest.raises(KeyboardInterrupt):
            train(config(run, track="none"))
        monkeypatch.undo()
        before = content(run)
        with pytest.raises(RunError, match=r"on its way to 2.*finish it first with pfb train --resume"):
            extend(run, 4)
        with pytest.raises(RunError, match="name more"):
            extend(run, 1)
        assert content(run) == before

    def test_while_another_process_trains_there(self, run):
        train(config(run, epochs=1, track="none"))
        with RunFolder(run).locked(), pytest.raises(RunError, match="another process trains in"):
            extend(run, 2)
        assert RunFolder(run).summary() is not None


class TestMinutes:
    @pytest.fixture
    def clock(self, monkeypatch):
        """Every epoch takes a minute."""
        now = [0.0]
        monkeypatch.setattr("pfb.lab.train.budget.time.monotonic", lambda: now[0])
        epoch = loop.Training.epoch

        def a_minute(self, number, on_step):
            now[0] += 60
            return epoch(self, number, on_step)

        monkeypatch.setattr(loop.Training, "epoch", a_minute)
        return now

    def test_a_run_stops_in_time_and_goes_on_bit_identical(self, tmp_path, clock, capsys):
        straight, stopped = tmp_path / "straight", tmp_path / "stopped"
        train(config(straight, epochs=3, track="none"))
        clock[0] = 0.0
        metrics = train(config(stopped, epochs=3, minutes=2.5, track="none"))
        assert metrics["epoch"] == 2
        said = " ".join(capsys.readouterr().out.split())
        assert "stopped after epoch 2 of 3: another would end after the 2.5 minutes" in said
        assert f"pfb train --resume {stopped}" in said
        assert RunFolder(stopped).summary() is None
        train(RunFolder(stopped).config(), resume=True)
        assert end_of(stopped) == end_of(straight)

    def test_one_epoch_is_always_trained(self, run, clock):
        assert train(config(run, epochs=3, minutes=0.01, track="none"))["epoch"] == 1
        assert json.loads((run / "config.json").read_text())["minutes"] == 0.01

    def test_the_longest_epoch_counts(self, monkeypatch):
        from accelerate import Accelerator

        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        budget = Budget(1.0, Accelerator(cpu=True))
        now[0] = 10.0  # data are loaded
        budget.epochs_begin()
        for seconds, allowed in ((20.0, True), (5.0, True), (6.0, False)):
            now[0] += seconds
            budget.epoch_ends()
            assert budget.allows_another() == allowed, now


def test_a_run_given_more_epochs_gets_no_twins(run):
    """A twin would have one cycle of another learning rate where the run had two."""
    train(config(run, epochs=1))
    extend(run, 2)
    for asked in ({"arms": ("short",)}, {"seeds": (0, 1)}):
        with pytest.raises(RunError, match="was given more epochs after its 1"):
            control.go_on(run, **asked)
