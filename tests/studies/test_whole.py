"""All of CIFAR-10, tried on few digits."""

import dataclasses

import pytest

from studies import whole
from studies.grid import read
from studies.whole import ARMS, WholeConfig
from tests.lab.train.runs import shorten

pytestmark = pytest.mark.usefixtures("_fresh_accelerate", "_small")


@pytest.fixture
def _small(monkeypatch):
    shorten(monkeypatch.setattr)


def config(tmp_path, **changes):
    return WholeConfig(data="digits", train_samples=256, out=tmp_path, **{"epochs": 3, **changes})


def test_arms_are_compared_at_the_same_schedule_or_compute(tmp_path):
    of = {arm: config(tmp_path, epochs=6).config_of(arm, 0, samples=50_000) for arm in ARMS}
    window = [dataclasses.astuple(of[arm].schedule()) for arm in ("paper", "uniform-inside", "paper-before")]
    assert window[0] == window[1] == window[2]
    assert of["uniform"].schedule() == of["copies"].schedule() == of["infobatch"].schedule()
    assert (of["short"].epochs, of["short"].batch_size) == (4, 128), "two thirds, as uniform trains on"
    assert (of["small-batch"].epochs, of["small-batch"].batch_size) == (4, 86)


def test_runs_go_on_where_they_stopped_and_stage_by_stage(tmp_path):
    some = ("full", "paper", "uniform-inside", "short")
    table = whole.run(config(tmp_path, arms=("full", "paper"), seeds=(0,)))
    assert "| `paper` | 1 |" in table.read_text()
    whole.run(config(tmp_path, arms=some, seeds=(0, 1)))
    runs = read(tmp_path / "whole.jsonl")
    assert [(run["seed"], run["arm"]) for run in runs] == [
        *((0, "full"), (0, "paper"), (0, "uniform-inside")),
        *((1, "full"), (1, "paper"), (1, "uniform-inside")),
        *((0, "short"), (1, "short")),
    ]
    paper, random = runs[1:3]
    assert paper["trained_samples"] == random["trained_samples"] < runs[0]["trained_samples"]
    assert paper["compute"] == random["compute"]
    assert str(tmp_path) not in (tmp_path / "whole.jsonl").read_text()
    rows = [line.split("|")[1].strip() for line in table.read_text().splitlines()[2:]]
    assert rows == [f"`{arm}`" for arm in some]
    assert " ± " in table.read_text()
