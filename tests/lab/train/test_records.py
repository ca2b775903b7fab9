"""What is recorded of each sample."""

import csv

import pytest

from pfb.lab.train.loop import train
from pfb.lab.train.options.config import TrainConfig

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

SMALL = {"epochs": 2, "train_samples": 256, "batch_size": 64, "cpu": True, "n_centers": 16}


def config(run, **changes):
    return TrainConfig(**{**SMALL, "out": run, **changes})


def test_what_happened_to_each_sample_is_exported(tmp_path):
    summary = train(config(tmp_path / "run"))
    with (tmp_path / "run" / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(256))
    stopped = sum(int(row["seen"]) - int(row["kept"]) for row in rows)
    assert stopped == summary["samples"] - summary["trained_samples"] > 0
    assert {int(row["label"]) for row in rows} == set(range(10))
