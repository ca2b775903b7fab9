"""Every preset to its end, on made data of its shapes and few steps."""

import pytest
import torch
from torch import nn

from pfb.lab import cli
from pfb.lab.train.loop import train
from pfb.lab.train.nets import optim
from pfb.lab.train.options.config import TrainConfig
from pfb.lab.train.options.presets import PRESETS
from pfb.lab.train.output.folder import RunFolder
from tests.lab.train.runs import end_of, image_folder, interrupt_evaluation
from tests.launching import accelerate_launch

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

SIDES = {"cifar10": 32, "cifar100": 32, "imagenet-r50": 232, "imagenet-swin-t": 232}
FEW = ("--epochs", "2", "--batch-size", "8", "--workers", "0", "--cpu", "--track", "none", "--n-centers", "4")


def test_all_that_need_no_download_are_rehearsed():
    assert {name for name, recipe in PRESETS.items() if not recipe.get("pretrained")} == set(SIDES)


@pytest.mark.parametrize("preset", [pytest.param(name, marks=pytest.mark.slow) for name in SIDES])
def test_a_preset_runs_to_its_end_and_is_resumed(tmp_path, monkeypatch, preset):
    folder = image_folder(tmp_path / "data", side=SIDES[preset], train=8, test=2)
    flags = ("train", "--preset", preset, "--data", f"imagefolder:{folder}", *FEW)
    cli.main([*flags, "--out", str(tmp_path / "straight")])
    summary = RunFolder(tmp_path / "straight").summary()
    assert summary["config"]["method"] == "paper"
    assert summary["pruned_steps"] > 0
    interrupt_evaluation(monkeypatch, at=3 if PRESETS[preset].get("ema") else 2)  # in the second epoch
    with pytest.raises(SystemExit):
        cli.main([*flags, "--out", str(tmp_path / "broken")])
    monkeypatch.undo()
    cli.main(["train", "--resume", str(tmp_path / "broken")])
    assert end_of(tmp_path / "broken") == end_of(tmp_path / "straight")


ON_TWO = {"imagenet-r50": ("--batch-size", "4"), "imagenet-swin-t": ("--batch-size", "4", "--accumulate", "2")}


@pytest.mark.parametrize("preset", [pytest.param(name, marks=pytest.mark.slow) for name in SIDES])
def test_a_preset_runs_and_is_resumed_on_two_processes_of_accelerate(tmp_path, preset):
    """``--minutes`` ends the first command after an epoch; the second one ends the run."""
    folder, run = image_folder(tmp_path / "data", side=SIDES[preset], train=16, test=2), tmp_path / "run"
    flags = ("--preset", preset, "--data", f"imagefolder:{folder}", *FEW, *ON_TWO.get(preset, ()))
    for command in ((*flags, "--out", run, "--minutes", "0.0001"), ("--resume", run)):
        assert not (run / "summary.json").exists()
        accelerate_launch("-m", "pfb", "train", *command)
    summary = RunFolder(run).summary()
    assert [line["epoch"] for line in RunFolder(run).epochs()] == [1, 2]
    assert (summary["processes"], summary["config"]["method"]) == (2, "paper")
    assert 0 < summary["trained_samples"] < summary["samples"]


def test_repeated_augmentation_keeps_or_stops_the_versions_of_an_image_together(tmp_path):
    settings = {"epochs": 1, "train_samples": 192, "batch_size": 32, "cpu": True, "start": 0.0, "stop": 1.0}
    train(TrainConfig(repeats=4, prune=0.5, track="none", out=tmp_path / "run", **settings))
    records = RunFolder(tmp_path / "run").records()
    assert set(records["seen"].tolist()) == {0, 4}, "a quarter of the images in an epoch, each four times"
    assert set(records["kept"].tolist()) == {0, 4}


def test_swins_relative_positions_do_not_decay():
    model = nn.Module()
    model.relative_position_bias_table = nn.Parameter(torch.zeros(3, 2))
    model.weight = nn.Parameter(torch.zeros(3, 2))
    decays, others = optim.optimizer(model, TrainConfig(optimizer="adamw", weight_decay=0.05)).param_groups
    assert decays["params"] == [model.weight]
    assert others["params"] == [model.relative_position_bias_table]
    assert (decays["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
