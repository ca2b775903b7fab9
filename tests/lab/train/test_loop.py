"""The main job end to end: train, resume, refuse bad input."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator

from pfb.lab import cli
from pfb.lab.errors import RunError
from pfb.lab.train.loop import train
from pfb.lab.train.nets.models import build
from pfb.lab.train.output.folder import RunFolder
from tests.lab.train.runs import config, content, end_of, interrupt_evaluation, weights

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


class TestRun:
    def test_a_run_learns_prunes_and_says_what_it_cost(self, run, capsys):
        summary = train(config(run, epochs=4, train_samples=None, batch_size=64, stop=0.75, prune=0.5))
        assert summary["test_accuracy"] > 0.9
        assert summary["samples"] == 4 * 22 * 64
        assert summary["deep_samples"] < 0.75 * summary["samples"]
        saved = summary["saved_for_backward_bytes"]
        assert saved["pruned"] < 0.9 * saved["full"]
        seconds = summary["step_seconds"]
        difference = seconds["full"]["median"] - seconds["pruned"]["median"]
        assert summary["full_train_seconds"] == pytest.approx(
            summary["train_seconds"] + summary["pruned_steps"] * difference
        )
        epochs, steps = RunFolder(run).epochs(), RunFolder(run).steps()
        assert [e["epoch"] for e in epochs] == [1, 2, 3, 4]
        assert epochs[-1]["pruned_share"] == 0, "the last part is trained on full data"
        assert all("log_density_50" in step for step in steps)
        assert steps
        records = RunFolder(run).records()
        assert int(records["kept"].sum()) == int(records["seen"].sum()) - (summary["samples"] - summary["deep_samples"])
        assert list((run / "tensorboard").rglob("events*"))
        printed = capsys.readouterr().out
        assert "CifarResNet" not in printed
        assert "stopped after 'layer1'" in printed

    def test_the_trained_weights_are_not_touched_by_the_cost_measurement(self, run):
        train(config(run))
        saved = weights(run)
        model = build("cifar-resnet8", 10, 1, 8)
        model.load_state_dict(saved)  # the checkpoint was written before; names are those of the plain model

    @pytest.mark.parametrize(
        "method",
        [
            *("copies", "paper-before", "uniform", "full"),
            *("release", "infobatch", "orderdp", "selective-backprop"),
        ],
    )
    def test_baselines(self, run, method):
        summary = train(config(run, method=method))
        pruned = summary["full_samples"] - summary["trained_samples"]
        assert (pruned == 0) == (method == "full")

    def test_same_seed_same_end(self, tmp_path):
        before: dict[str, Any] = {"method": "copies"}
        changes = {"a": {}, "b": {}, "c": {"seed": 1}, "d": before, "e": before | {"memory": 8}}
        for name in changes:
            train(config(tmp_path / name, epochs=1, **changes[name]))
        a, b, *others = (weights(tmp_path / name) for name in changes)
        assert all(torch.equal(a[k], b[k]) for k in a)
        assert len({float(w["fc.weight"].sum()) for w in (a, *others)}) == 4

    @pytest.mark.parametrize("precision", ["bf16"])
    def test_mixed_precision(self, run, precision, method):
        summary = train(config(run, precision=precision, method=method, channels_last=True))
        assert summary["deep_samples"] < summary["samples"]


class TestResume:
    @pytest.mark.parametrize(
        "changes",
        [
            {"method": "paper"},
            {"method": "paper-before"},
            {"method": "copies", "clip": 0.5},
            {"method": "copies", "mix": "mixup", "start": 0.0},
            {"method": "copies", "fill": True},
            {"method": "copies", "repeats": 2},
            {"method": "infobatch"},
            {"method": "orderdp"},
        ],
        ids=str,
    )
    def test_interrupted_between_epochs(self, tmp_path, changes, monkeypatch):
        straight, broken = tmp_path / "straight", tmp_path / "broken"
        train(config(straight, **changes))

        interrupt_evaluation(monkeypatch, at=2)
        with pytest.raises(KeyboardInterrupt, match=f"interrupted.*checkpoint_0001.*pfb train --resume {broken}"):
            train(config(broken, **changes))
        monkeypatch.undo()
        train(RunFolder(broken).config(), resume=True)
        assert end_of(broken) == end_of(straight)

    def test_an_interrupted_first_epoch_is_begun_again(self, run, monkeypatch):
        interrupt_evaluation(monkeypatch, at=1)
        with pytest.raises(KeyboardInterrupt, match="No epoch was finished: start again, with --overwrite"):
            train(config(run))
        monkeypatch.undo()
        with pytest.raises(RunError, match="no epoch was finished. Start again with --overwrite"):
            train(config(run), resume=True)
        train(config(run, overwrite=True, epochs=1))

    def test_a_finished_run_is_left_as_it_is(self, run, capsys):
        first = train(config(run))
        before = content(run)
        assert train(RunFolder(run).config(), resume=True) == first
        assert "finished already; nothing was changed" in " ".join(capsys.readouterr().out.split())
        assert content(run) == before

    def test_a_finished_run_is_not_that_of_other_settings(self, run):
        train(config(run, epochs=1))
        with pytest.raises(RunError, match="summary.json belongs to other settings: --epochs is 1 there and 2"):
            train(config(run, epochs=2), resume=True)

    def test_a_run_goes_on_where_its_folder_was_moved(self, tmp_path, run, monkeypatch):
        interrupt_evaluation(monkeypatch, at=2)
        with pytest.raises(KeyboardInterrupt):
            train(config(run))
        monkeypatch.undo()
        run.rename(tmp_path / "moved")
        train(RunFolder(tmp_path / "moved").config(), resume=True)
        assert not run.exists()


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"data": "mnist"}, "--data must be"),
            ({"model": "resnet19"}, "Did you mean"),
            ({"model": "timm:vit_smal"}, "timm has no model"),
            ({"cut": "layer9"}, "layer9.*Candidates"),
            ({"model": "timm:convnext_atto"}, r"does not run on an input of shape \(2, 1, 8, 8\): .*Kernel size"),
            ({"model": "timm:test_vit"}, r"does not run on an input of shape \(2, 1, 8, 8\): .*patch size"),
            ({"batch_size": 100_000, "train_samples": None}, "larger than the training set of 1437"),
            ({"train_samples": 5000}, "at most the data set's size 1437"),
            ({"data": "imagefolder:/nowhere"}, "/nowhere is missing"),
            ({"lr": 1e20, "epochs": 1}, "loss became nan|loss became inf"),
        ],
    )
    def test_is_refused_with_the_way_out(self, run, changes, message):
        with pytest.raises(RunError, match=message):
            train(config(run, **changes))
        assert not (run / "summary.json").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"prune": 1.0}, r"\[0, 1\)"),
            ({"start": 0.9}, "start < stop"),
            ({"epochs": 0}, "--epochs"),
            ({"lr": 0.0}, "--lr"),
            ({"n_centers": 1}, "--n-centers"),
            ({"beta": 2.0}, "beta"),
            ({"alpha": -1.0}, "alpha"),
        ],
    )
    def test_settings_are_refused_before_anything_is_loaded(self, run, changes, message):
        with pytest.raises(RunError, match=message):
            config(run, **changes)

    def test_the_command_line_prints_one_line_and_exits_1(self, run, capsys):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["train", "--data", "mnist", "--out", str(run)])
        assert stopped.value.code == 1
        error = capsys.readouterr().err
        assert error.startswith("pfb: --data must be")
        assert "Traceback" not in error

    def test_resume_with_other_settings_is_refused(self, run, capsys):
        with pytest.raises(SystemExit):
            cli.main(["train", "--resume", str(run), "--lr", "0.1"])
        assert "leave out --lr" in capsys.readouterr().err

    def test_resume_of_nothing(self, run, capsys):
        with pytest.raises(SystemExit):
            cli.main(["train", "--resume", str(run)])
        assert "there is no run" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharded_models_are_refused(run, monkeypatch, kind):
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    with pytest.raises(RunError, match=f"whole model per process .got {kind}"):
        train(config(run))
