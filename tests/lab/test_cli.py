"""The command line: what it says, and how it ends."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from typing import get_args

import pytest

import pfb
from pfb.lab import cli
from pfb.lab.train import loop
from pfb.lab.train.options.config import TrainConfig
from pfb.lab.train.options.presets import PRESETS, Preset


@pytest.fixture
def trained(monkeypatch):
    """The settings that a command trains with, without the training."""
    configs = []
    monkeypatch.setattr(loop, "train", lambda config, resume=False: configs.append((config, resume)))
    monkeypatch.setattr(loop, "dry_run", lambda config: configs.append((config, "dry")))
    return configs


@pytest.fixture
def file(tmp_path):
    place = tmp_path / "run.toml"
    place.write_text('epochs = 2\ntrain-samples = 256\naugment = false\nalpha = 1.5\nmethod = "uniform"\n')
    return place


def refused(capsys, *args, code=1):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(arg) for arg in args])
    assert stopped.value.code == code
    error = capsys.readouterr().err
    if code == 1:
        assert error.startswith("pfb: ")
        assert error.count("\n") == 1
    return error


class TestHelp:
    @pytest.fixture
    def help(self, capsys):
        with pytest.raises(SystemExit):
            cli.main(["train", "--help"])
        return capsys.readouterr().out

    def test_every_setting_stands_in_its_group_with_a_text(self, help):
        before, *rest = re.split(r"^\W*(?:(\w+) )?options\W*$", help, flags=re.MULTILINE)
        groups = dict(zip(rest[::2], rest[1::2], strict=True))
        assert list(groups) == [None, "data", "model", "pruning", "optimisation", "run"]
        for flag, group in (("train-samples", "data"), ("cut", "pruning"), ("lr", "optimisation"), ("out", "run")):
            assert f" --{flag} " in groups[group]
        assert set(re.findall(r"^\W*--([a-z-]+)", help, re.MULTILINE)) >= {
            *(f.name.replace("_", "-") for f in dataclasses.fields(TrainConfig) if f.name != "extended_from"),
            *("config", "preset", "resume", "dry-run"),
        }
        assert "pfb train --data imagefolder:PATH" in before, "an example"

    def test_the_example_is_one(self, help, trained):
        example = next(line for line in help.splitlines() if line.startswith("pfb train"))
        cli.main(example.split()[1:])
        assert trained[0][0].prune == 0.5


class TestPreset:
    @pytest.mark.parametrize("name", PRESETS)
    def test_each_is_a_run(self, trained, name):
        data = ["--data=imagefolder:x"] if name == "finetune" else []
        cli.main(["train", "--preset", name, *data])
        (config, _) = trained[0]
        assert {setting: getattr(config, setting) for setting in PRESETS[name]} == PRESETS[name]
        assert set(get_args(Preset)) == set(PRESETS)

    def test_a_file_and_flags_win_over_it(self, trained, file):
        cli.main(["train", "--epochs=3", f"--config={file}", "--preset=cifar10", "--lr", "0.2"])
        (config, _) = trained[0]
        assert (config.model, config.epochs, config.augment, config.lr) == ("resnet18", 3, False, 0.2)

    def test_finetune_needs_an_image_folder(self, capsys, trained):
        assert "--image-size is for image folders" in refused(capsys, "train", "--preset", "finetune")

    def test_an_unknown_one_is_refused_with_the_list(self, capsys):
        assert "imagenet-r50" in refused(capsys, "train", "--preset", "imagenet", code=2)


class TestConfigFile:
    @pytest.mark.parametrize("form", [lambda file: [f"--config={file}"], lambda file: ["--config", str(file)]])
    def test_flags_win_over_the_file_wherever_they_stand(self, trained, file, form):
        cli.main(["train", "--epochs", "1", *form(file), "--augment", "--lr=0.5"])
        expected = TrainConfig(epochs=1, train_samples=256, alpha=1.5, method="uniform", augment=True, lr=0.5)
        assert trained == [(expected, False)]
        cli.main(["train", *form(file)])
        assert not trained[-1][0].augment

    def test_the_default_model_follows_the_data_of_a_flag(self, trained, file):
        cli.main(["train", "--config", str(file), "--data", "text"])
        assert trained[-1][0].model == "gpt"

    def test_what_is_wrong_with_it_is_one_line(self, capsys, file):
        assert "nowhere.toml cannot be read" in refused(capsys, "train", "--config", "nowhere.toml")
        file.write_text("prune = 2.0")
        assert "[0, 1)" in refused(capsys, "train", "--config", file)
        refused(capsys, "train", "--config", code=2)


class TestResume:
    def test_a_run_goes_on_where_it_lies_now(self, trained, tmp_path):
        (tmp_path / "config.json").write_text(TrainConfig(epochs=7).to_json())
        cli.main(["train", "--resume", str(tmp_path)])
        assert trained == [(TrainConfig(epochs=7, out=tmp_path), True)]

    def test_with_settings_of_its_own_only(self, capsys, trained, file, tmp_path):
        flags = ["--batch_size=7", "--no-augment"]
        assert "leave out --batch-size, --augment" in refused(capsys, "train", "--resume", tmp_path, *flags)
        assert "leave out --config" in refused(capsys, "train", "--resume", tmp_path, "--config", file)
        assert "leave out --resume" in refused(capsys, "train", "--resume", tmp_path, "--dry-run")
        assert trained == []

    def test_but_for_epochs_and_minutes(self, capsys, trained, tmp_path):
        (tmp_path / "config.json").write_text(TrainConfig(epochs=7, minutes=3.0).to_json())
        cli.main(["train", "--resume", str(tmp_path), "--minutes", "5"])
        assert trained == [(TrainConfig(epochs=7, minutes=5.0, out=tmp_path), True)]
        assert "one of 7 epochs; name more" in refused(capsys, "train", "--resume", tmp_path, "--epochs=3")
        assert "finish it first with pfb train --resume" in refused(capsys, "train", "--resume", tmp_path, "--epochs=9")
        cli.main(["train", "--resume", str(tmp_path), "--epochs=7"])
        assert trained[1] == (TrainConfig(epochs=7, out=tmp_path), True)

    def test_a_damaged_config(self, capsys, tmp_path):
        (tmp_path / "config.json").write_bytes(b"\xff\xfe")
        assert "config.json" in refused(capsys, "train", "--resume", tmp_path)
        (tmp_path / "config.json").write_text("5")
        assert "config.json" in refused(capsys, "train", "--resume", tmp_path)


class TestNothingIsLoadedForARefusal:
    """Data and libraries take many seconds."""

    @pytest.fixture
    def loads_nothing(self, monkeypatch):
        monkeypatch.setattr("pfb.lab.train.paired.control.start", lambda *_: 1 / 0)
        for name in ("pfb.lab.advise", "pfb.lab.report", "pfb.lab.train.output.folder"):
            monkeypatch.setitem(sys.modules, name, None)  # an import of it fails

    def test_a_folder_that_is_taken(self, capsys, tmp_path, loads_nothing):
        (tmp_path / "config.json").write_text('{"data": "digits", "data_root": "data"}')
        assert "it holds a run already" in refused(capsys, "train", "--out", tmp_path)
        (tmp_path / "config.json").write_text("{}")
        assert "holds files of something else" in refused(capsys, "train", "--out", tmp_path, "--overwrite")

    def test_a_tracker_that_is_not_installed(self, capsys, tmp_path, loads_nothing, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert "pip install mlflow" in refused(capsys, "train", "--out", tmp_path / "a", "--track", "mlflow")

    def test_a_report_of_nothing(self, capsys, tmp_path, loads_nothing):
        assert "there is no run" in refused(capsys, "report", tmp_path)
        (tmp_path / "config.json").write_text("{}")
        assert "must end in .html" in refused(capsys, "report", tmp_path, "--out", "x.pdf")

    def test_an_advice_that_cannot_be_written(self, capsys, tmp_path, loads_nothing):
        assert "must end in .html" in refused(capsys, "advise", "--out", tmp_path / "x.pdf")
        assert "at least 2" in refused(capsys, "advise", "--samples", "1", "--out", tmp_path / "x.html")


class TestEnds:
    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (OSError(36, "File name too long", "x"), "[Errno 36] File name too long: 'x'"),
            (PermissionError(13, "Permission denied", "train"), "[Errno 13] Permission denied: 'train'"),
            (OSError(28, "No space left on device"), "[Errno 28] No space left on device. Free space, then try again"),
            (MemoryError(), "memory is short (MemoryError)"),
            (RuntimeError("DataLoader worker (pid(s) 7) exited"), "a loader's process was killed, mostly because"),
        ],
    )
    def test_what_the_system_does_is_one_line(self, capsys, monkeypatch, error, said):
        def fail(config):
            raise error

        monkeypatch.setattr(loop, "train", fail)
        assert refused(capsys, "train").startswith(f"pfb: {said}")

    def test_an_error_of_the_code_keeps_its_traceback(self, monkeypatch):
        monkeypatch.setattr(loop, "train", lambda config: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli.main(["train"])

    def test_names_with_codes_are_written_as_codes(self, capsys, tmp_path):
        (tmp_path / "a\x1b[2J").mkdir()
        said = refused(capsys, "report", tmp_path / "a\x1b[2J")
        assert "a\\x1b[2J: there is no run" in said

    def test_a_name_that_is_not_utf8_can_be_said(self, tmp_path):
        code = "import sys; from pfb.lab import cli; cli.main(['train', '--out', sys.argv[1], '--dry-run', '--cpu'])"
        (tmp_path / "a").mkdir()
        place = os.fsencode(tmp_path) + b"/caf\xe9"
        os.mkdir(place)
        (tmp_path / "x").touch()
        os.rename(tmp_path / "x", place + b"/x")
        run = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True)
        assert run.returncode == 1
        assert "caf\\udce9 holds files of something else" in run.stderr

    def test_a_ramp_without_end(self, capsys):
        assert "--ramp must be a number of levels from 0 to 1,000" in refused(capsys, "train", "--ramp", 10**12)

    def test_a_folder_whose_name_cannot_be(self, capsys, tmp_path):
        (tmp_path / "a.json").write_text('{"out": "a\\u0000b"}')
        assert "a\\x00b" in refused(capsys, "train", "--config", tmp_path / "a.json")

    def test_version(self, capsys):
        cli.main(["--version"])
        assert capsys.readouterr().out == f"pfb {pfb.__version__}\n"

    @pytest.mark.parametrize("flags", [["--image-size", "0"], ["--workers", "-1"]])
    def test_what_no_setting_can_be_is_refused(self, capsys, flags):
        assert f"{flags[0]} must be at least" in refused(capsys, "train", *flags)

    def test_ctrl_c_says_what_the_run_says(self, capsys, monkeypatch):
        for told, said in ((("interrupted. Continue with: pfb train --resume runs/7",), "runs/7"), ((), "interrupted")):

            def stop(config, told=told):
                raise KeyboardInterrupt(*told)

            monkeypatch.setattr(loop, "train", stop)
            assert said in refused(capsys, "train", code=130)

    def test_help_loads_nothing_that_it_does_not_need(self):
        code = """
import contextlib, json, sys
from pfb.__main__ import main
for args in ["--version"], ["--help"], ["train", "--help"]:
    sys.argv[1:] = args
    with contextlib.suppress(SystemExit):
        main()
print(json.dumps(sorted(sys.modules)))
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        *said, loaded = run.stdout.splitlines()
        assert any("--channels-last" in line for line in said)
        needless = {
            "accelerate",
            "matplotlib",
            "PIL",
            "scipy",
            "sklearn",
            "timm",
            "torch",
            "torchvision",
            "transformers",
        }
        assert not needless & set(json.loads(loaded))
