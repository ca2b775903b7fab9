"""Samples that are not loaded, and samples that are stopped."""

import csv

import pytest

from pfb.lab.baselines import Skip
from pfb.lab.errors import RunError
from pfb.lab.train.config import TrainConfig
from pfb.lab.train.loop import train

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

SMALL = {"epochs": 2, "train_samples": 256, "batch_size": 64, "cpu": True, "n_centers": 16}


def config(run, **changes):
    return TrainConfig(**{**SMALL, "out": run, **changes})


def test_samples_are_left_out_before_others_are_stopped(tmp_path, shallow):
    settings = {"epochs": 8, "train_samples": 512, "batch_size": 64, "shallow": shallow, "prune": 0.5}
    summary = train(config(tmp_path / "run", skip=0.25, **settings))
    # Epochs 2 to 7 prune: the first one (0 of 8) begins before the window, the last one (7 of
    # 8) after it.
    assert summary["samples"] == 2 * 512 + 6 * 384
    assert summary["steps"] == 2 * 8 + 6 * 6
    # Of 52 steps those from 2.6 to 45.5 stop half of 64.
    assert summary["pruned_steps"] == 43
    assert summary["trained_samples"] == summary["samples"] - 43 * 32
    seconds = {name: part["median"] for name, part in summary["step_seconds"].items() if name != "pairs"}
    assert summary["full_train_seconds"] == pytest.approx(
        summary["train_seconds"] + 43 * (seconds["full"] - seconds["pruned"]) + 12 * seconds["full"]
    )
    with (tmp_path / "run" / "samples.csv").open() as file:
        seen = [int(row["seen"]) for row in csv.DictReader(file)]
    assert min(seen) < max(seen), "another part is left out in every epoch"


def test_what_is_not_loaded_is_saved_also_where_nothing_is_stopped(tmp_path):
    summary = train(config(tmp_path / "run", method="full", skip=0.5, epochs=4, train_samples=512, batch_size=64))
    share = summary["steps"] / (4 * 8)
    assert share < 0.8
    assert summary["time_saved"] == pytest.approx(1 - share)
    assert summary["full_train_seconds"] == pytest.approx(summary["train_seconds"] / share)


def test_a_step_of_a_ramp_saves_what_it_stops(tmp_path):
    settings = {"epochs": 8, "train_samples": 512, "batch_size": 64, "method": "uniform", "prune": 0.5, "ramp": 4}
    summary = train(config(tmp_path / "run", **settings))
    seconds = {name: part["median"] for name, part in summary["step_seconds"].items() if name != "pairs"}
    whole_steps = (summary["samples"] - summary["trained_samples"]) / 32
    assert whole_steps < 0.9 * summary["pruned_steps"]
    assert summary["full_train_seconds"] == pytest.approx(
        summary["train_seconds"] + whole_steps * (seconds["full"] - seconds["pruned"])
    )


def test_the_floor_is_a_persons():
    assert Skip(100, 0.29).loaded == 71, "not 72, as int(0.29 * 100) would have it"


def test_methods_that_choose_what_is_loaded_refuse_it(tmp_path):
    with pytest.raises(RunError, match="leave out --skip"):
        train(config(tmp_path / "run", method="infobatch", skip=0.2))
    with pytest.raises(RunError, match="--skip must be"):
        config(tmp_path / "run", skip=1.0)
