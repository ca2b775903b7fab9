"""The main job end to end: train, resume, refuse bad input, lose nothing."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from pfb.lab import cli
from pfb.lab.errors import RunError
from pfb.lab.train import checkpoint, loop
from pfb.lab.train.config import TrainConfig
from pfb.lab.train.loop import train
from pfb.lab.train.models import build

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

SMALL = {"epochs": 3, "train_samples": 384, "batch_size": 64, "cpu": True, "n_centers": 16}


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def config(run, **changes):
    return TrainConfig(**{**SMALL, "out": run, **changes})


def weights(run):
    from safetensors.torch import load_file

    return load_file(checkpoint.finished(run)[-1] / "model.safetensors")


def pfb(*arguments, **options):
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pfb", *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


def interrupt_evaluation(monkeypatch, at):
    """Ctrl-C at the evaluation of some epoch."""
    evaluate, calls = loop.Training.evaluate, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(loop.Training, "evaluate", interrupting)


SMALL_FLAGS = ["--epochs", "3", "--train-samples", "384", "--batch-size", "64", "--cpu", "--n-centers", "16"]


class TestRun:
    def test_a_run_learns_prunes_and_says_what_it_cost(self, run, capsys):
        summary = train(config(run, epochs=10, train_samples=None, shallow="recompute"))
        assert summary["test_accuracy"] > 0.9
        assert summary["samples"] == 10 * 22 * 64
        assert summary["deep_samples"] < 0.75 * summary["samples"]
        saved = summary["saved_for_backward_bytes"]
        assert saved["pruned"] < 0.75 * saved["full"]
        seconds = summary["step_seconds"]
        difference = seconds["full"]["median"] - seconds["pruned"]["median"]
        assert summary["full_train_seconds"] == pytest.approx(
            summary["train_seconds"] + summary["pruned_steps"] * difference
        )
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        epochs = [line for line in lines if "test_accuracy" in line]
        assert [e["epoch"] for e in epochs] == list(range(1, 11))
        assert epochs[-1]["pruned_share"] == 0, "the last part is trained on full data"
        steps = [line for line in lines if "log_density_50" in line]
        assert steps
        records = torch.load(run / "records.pt")
        assert int(records["kept"].sum()) == int(records["seen"].sum()) - (summary["samples"] - summary["deep_samples"])
        assert list((run / "tensorboard").rglob("events*"))
        printed = capsys.readouterr().out
        assert "CifarResNet" not in printed
        assert "stopped at the cut" in printed

    def test_the_trained_weights_are_not_touched_by_the_cost_measurement(self, run):
        train(config(run))
        saved = weights(run)
        model = build("resnet8", 10, 1, 8)
        model.load_state_dict(saved)  # the checkpoint was written before; names are those of the plain model

    @pytest.mark.parametrize(
        "method", ["uniform", "full", "tempered", "stratified", "release", "infobatch", "orderdp", "selective-backprop"]
    )
    def test_baselines(self, run, method):
        summary = train(config(run, method=method))
        pruned = summary["full_samples"] - summary["trained_samples"]
        assert (pruned == 0) == (method == "full")

    def test_same_seed_same_end(self, tmp_path):
        for name in ("a", "b"):
            train(config(tmp_path / name))
        train(config(tmp_path / "c", seed=1))
        a, b, c = (weights(tmp_path / name) for name in "abc")
        assert all(torch.equal(a[k], b[k]) for k in a)
        assert not torch.equal(a["fc.weight"], c["fc.weight"])

    @pytest.mark.parametrize("precision", ["bf16"])
    def test_mixed_precision(self, run, precision, shallow):
        summary = train(config(run, precision=precision, shallow=shallow, channels_last=True))
        assert summary["deep_samples"] < summary["samples"]

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("resnet20", 272_474), ("resnet18", 11_173_962), ("timm:resnet10t", None), ("mobilenet_v3_small", None)],
    )
    def test_models_by_name(self, name, expected):
        model = build(name, 10, 3, 32)
        assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        if expected is not None:  # He et al. (2016), table 6: 0.27 M; the CIFAR ResNet-18 of this family: 11.17 M
            assert sum(p.numel() for p in model.parameters()) in range(expected - 2500, expected + 2500)


class TestResume:
    @pytest.mark.parametrize(
        "changes",
        [{"shallow": "reuse"}, {"shallow": "recompute"}, {"method": "infobatch"}, {"method": "orderdp"}],
        ids=str,
    )
    def test_interrupted_between_epochs(self, tmp_path, changes, monkeypatch):
        straight, broken = tmp_path / "straight", tmp_path / "broken"
        train(config(straight, **changes))

        interrupt_evaluation(monkeypatch, at=2)
        with pytest.raises(KeyboardInterrupt):
            train(config(broken, **changes))
        monkeypatch.undo()
        assert [p.name for p in checkpoint.finished(broken)] == ["checkpoint_0001"]
        train(TrainConfig.from_json((broken / "config.json").read_text()), resume=True)

        a, b = weights(straight), weights(broken)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
        for name in ("seen", "kept"):
            assert torch.equal(torch.load(straight / "records.pt")[name], torch.load(broken / "records.pt")[name])
        losses = [
            [
                json.loads(line)["train_loss"]
                for line in (r / "metrics.jsonl").read_text().splitlines()
                if "train_l" in line
            ]
            for r in (straight, broken)
        ]
        assert losses[0] == losses[1]

    def test_kill_9_at_some_moment(self, tmp_path):
        straight, broken = tmp_path / "straight", tmp_path / "broken"
        flags = ["--data", "digits", *SMALL_FLAGS, "--epochs", "40", "--shallow", "recompute"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        assert pfb("train", *flags, "--out", straight, env=environment).returncode == 0
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "pfb", "train", *flags, "--out", str(broken)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        deadline = time.monotonic() + 60
        while not checkpoint.finished(broken) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.4)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (broken / "summary.json").exists(), "it was killed too late to prove anything"
        resumed = pfb("train", "--resume", broken, env=environment)
        assert resumed.returncode == 0, resumed.stderr
        a, b = weights(straight), weights(broken)
        assert all(torch.equal(a[k], b[k]) for k in a)

    def test_resuming_a_finished_run_says_its_summary_again(self, run):
        first = train(config(run))
        again = train(config(run), resume=True)
        assert again["test_accuracy"] == first["test_accuracy"]
        assert again["samples"] == first["samples"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"data": "mnist"}, "--data must be"),
            ({"model": "resnet19"}, "Did you mean"),
            ({"model": "timm:vit_smal"}, "timm has no model"),
            ({"cut": "layer9"}, "layer9.*Candidates"),
            ({"model": "timm:convnext_atto"}, r"does not run on an input of shape \(2, 1, 8, 8\): .*Kernel size"),
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
            ({"n_centers": 1}, "n_centers"),
            ({"beta": 2.0}, "beta"),
            ({"alpha": -1.0}, "alpha"),
        ],
    )
    def test_settings_are_refused_before_anything_is_loaded(self, run, changes, message):
        with pytest.raises(RunError, match=message):
            config(run, **changes)

    def test_another_runs_folder_is_not_overwritten(self, run):
        train(config(run, epochs=1))
        with pytest.raises(RunError, match="--resume .*--overwrite"):
            train(config(run, epochs=1))
        train(config(run, epochs=1, overwrite=True))

    def test_a_folder_of_something_else_is_never_removed(self, run):
        run.mkdir()
        (run / "thesis.tex").write_text("years of work")
        with pytest.raises(RunError, match="something else"):
            train(config(run, overwrite=True))
        assert (run / "thesis.tex").exists()

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


class TestImageFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        g = torch.Generator().manual_seed(0)
        for part, n in (("train", 24), ("test", 8)):
            for label, name in enumerate(("dark", "light")):
                (tmp_path / "images" / part / name).mkdir(parents=True)
                for i in range(n):
                    pixels = (torch.rand(16, 16, 3, generator=g) * 100 + 120 * label).to(torch.uint8).numpy()
                    Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{i}.png")
        return tmp_path / "images"

    def settings(self, run, folder, **changes):
        common = {"train_samples": None, "batch_size": 16, "epochs": 6, "lr": 0.1, "n_centers": 8}
        return config(run, data=f"imagefolder:{folder}", **{**common, **changes})

    def test_small_images(self, run, folder):
        summary = train(self.settings(run, folder))
        assert summary["classes"] == ["dark", "light"]
        assert summary["test_accuracy"] > 0.9

    @pytest.mark.filterwarnings("ignore")
    def test_large_images_go_through_the_loader(self, run, folder):
        summary = train(self.settings(run, folder, image_size=72, epochs=1, workers=0, prune=0.5, start=0.0, stop=1.0))
        assert summary["deep_samples"] < summary["samples"]

    def test_a_cut_that_cannot_be_read_is_refused_before_training(self, run, folder):
        """96 channels of 96 x 96 pixels."""
        square = self.settings(run, folder, model="convnext_tiny", image_size=384, workers=0, start=0.5)
        with pytest.raises(
            RunError, match=r"cannot tell which dimension .*\(2, 96, 96, 96\).*Pass --channel-dim 1 for"
        ):
            train(square)
        assert not run.exists()

    def test_a_model_of_one_size_cannot_be_scored_at_half(self, run, folder):
        half = {"shallow": "recompute", "scoring_scale": 0.5, "image_size": 32, "workers": 0}
        with pytest.raises(RunError, match="shrunk by --scoring-scale 0.5: .*doesn't match model"):
            train(self.settings(run, folder, model="timm:vit_tiny_patch16_224", **half))

    def test_a_damaged_image_is_named_before_the_first_step(self, run, folder):
        (folder / "train" / "dark" / "3.png").write_bytes(b"not an image")
        truncated = folder / "test" / "light" / "2.png"
        truncated.write_bytes(truncated.read_bytes()[:60])
        with pytest.raises(RunError, match=r"1 of 48 images cannot be read.*\n.*dark/3.png"):
            train(self.settings(run, folder))
        (folder / "train" / "dark" / "3.png").unlink()
        with pytest.raises(RunError, match="light/2.png"):
            train(self.settings(run, folder))

    def test_an_empty_class(self, run, folder):
        for file in (folder / "train" / "dark").iterdir():
            file.unlink()
        with pytest.raises(RunError, match="dark holds no images"):
            train(self.settings(run, folder))

    def test_an_empty_folder(self, run, folder):
        shutil.rmtree(folder / "train")
        (folder / "train").mkdir()
        with pytest.raises(RunError, match="no class folders"):
            train(self.settings(run, folder))

    def test_a_test_class_that_training_lacks(self, run, folder):
        (folder / "test" / "green").mkdir()
        Image.new("RGB", (16, 16)).save(folder / "test" / "green" / "0.png")
        with pytest.raises(RunError, match="green"):
            train(self.settings(run, folder))


class TestCheckpoints:
    @pytest.fixture
    def finished(self, run):
        train(config(run, epochs=1))
        return run

    def resume(self, run):
        return pfb("train", "--resume", run)

    def test_a_damaged_file_is_named(self, finished):
        file = checkpoint.finished(finished)[-1] / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
        with pytest.raises(RunError, match=r"model.safetensors is damaged.*Remove"):
            train(config(finished, epochs=1), resume=True)

    def test_a_missing_file_and_manifest(self, finished):
        place = checkpoint.finished(finished)[-1]
        (place / "optimizer.bin").unlink()
        with pytest.raises(RunError, match="optimizer.bin is missing"):
            train(config(finished, epochs=1), resume=True)
        (place / "manifest.json").write_text("{")
        with pytest.raises(RunError, match="manifest.json is missing or damaged"):
            train(config(finished, epochs=1), resume=True)

    def test_another_models_checkpoint(self, finished):
        with pytest.raises(RunError, match="does not fit this run"):
            train(config(finished, epochs=1, model="resnet14"), resume=True)

    def test_a_draft_is_no_checkpoint(self, finished):
        (finished / "checkpoint_0009.draft").mkdir()
        assert [p.name for p in checkpoint.finished(finished)] == ["checkpoint_0001"]

    def test_no_checkpoint_at_all(self, finished):
        shutil.rmtree(checkpoint.finished(finished)[-1])
        with pytest.raises(RunError, match="no checkpoint"):
            train(config(finished, epochs=1), resume=True)

    def test_a_full_disk_keeps_the_previous_checkpoint(self, run, monkeypatch):
        """A limit on file size makes the very write calls fail that a full disk makes fail."""

        def limited():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

        interrupt_evaluation(monkeypatch, at=3)
        with pytest.raises(KeyboardInterrupt):
            train(config(run))
        saved = {p: p.read_bytes() for p in checkpoint.finished(run)[-1].rglob("*") if p.is_file()}
        failed = pfb("train", "--resume", run, preexec_fn=limited)
        assert failed.returncode == 1, failed.stderr
        assert "could not be written" in failed.stderr
        assert "checkpoint_0002 is intact" in failed.stderr
        assert "Traceback" not in failed.stderr
        assert {p: p.read_bytes() for p in saved} == saved
        assert pfb("train", "--resume", run).returncode == 0


def test_two_processes_train_evaluate_every_sample_once_and_resume(tmp_path):
    """Through torchrun, which is what accelerate launch calls, on two gloo processes."""
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["-m", "pfb", "train"]
    flags = [*SMALL_FLAGS[2:], "--shallow", "recompute", "--ema", "0.9"]

    def run(*arguments):
        # Not the exit code: gloo now and then aborts while a finished process exits.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        arguments = [*launch, *map(str, arguments)]
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=200)
        assert (tmp_path / "run" / "summary.json").exists(), done.stderr[-3000:]

    run(*flags, "--epochs", "3", "--out", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["processes"] == 2
    assert summary["samples"] == 3 * 384
    assert 0 < summary["trained_samples"] < summary["samples"]
    right = summary["test_accuracy"] * 360
    assert right == pytest.approx(round(right), abs=1e-6), "each of the 360 test samples counts once"
    records = torch.load(tmp_path / "run" / "records.pt")
    stopped = int(records["seen"].sum() - records["kept"].sum())
    assert stopped == summary["samples"] - summary["trained_samples"], "the records are those of both processes"
    (tmp_path / "run" / "summary.json").unlink()
    run("--resume", tmp_path / "run")
    again = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert again["test_accuracy"] == summary["test_accuracy"]


def test_ctrl_c_says_how_to_continue(run):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "pfb", "train", *SMALL_FLAGS, "--epochs", "2000", "--out", str(run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not checkpoint.finished(run) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in error
    assert "Traceback" not in error
    checkpoint.verified(checkpoint.finished(run)[-1])


def test_report(tmp_path):
    for name, method in (("a", "pfb"), ("b", "full")):
        train(config(tmp_path / name, method=method))
    cli.main(["report", str(tmp_path / "a"), str(tmp_path / "b")])
    page = (tmp_path / "a" / "report.html").read_text()
    for heading in ("Learning curves", "What was pruned", "Kept most and pruned most often"):
        assert heading in page
    assert page.count("data:image/png;base64,") == 3
    cli.main(["report", str(tmp_path / "b"), "--out", str(tmp_path / "b.png")])
    assert Image.open(tmp_path / "b.png").size[0] > 500


def test_report_of_an_unfinished_run_and_of_none(tmp_path, capsys):
    train(config(tmp_path / "a"))
    (tmp_path / "a" / "summary.json").unlink()
    cli.main(["report", str(tmp_path / "a")])
    assert "so far" in (tmp_path / "a" / "report.html").read_text()
    for arguments, message in (([str(tmp_path)], "holds no run"), ([str(tmp_path / "a"), "--out", "x.pdf"], "end in")):
        with pytest.raises(SystemExit):
            cli.main(["report", *arguments])
        assert message in capsys.readouterr().err


def test_the_settings_round_trip():
    settings = TrainConfig(prune=0.3, cut="layer2", out=Path("x"))
    assert TrainConfig.from_json(settings.to_json()) == settings
    with pytest.raises(RunError, match="config.json"):
        TrainConfig.from_json("{}")
