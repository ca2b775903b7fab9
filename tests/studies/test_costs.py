"""What the memory, several processes and the trainer cost: each study end to end, small."""

import json

import pytest
import torch

from pfb.lab.train.config import TrainConfig
from pfb.lab.train.data import load
from studies import __main__ as studies
from studies import neighbours, paper, scaling, trainer

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]
STEP = ["--model", "cifar-resnet8", "--image-size", "8", "--batch-size", "8", "--repeats", "1"]


def test_a_memorys_cost_is_told_beside_a_step(tmp_path):
    sizes = ["--rows", "16", "64", "--batches", "4", "--dims", "3", "--around", "64", "5"]
    studies.main(["neighbours", *STEP, *sizes, "--device", "cpu", "--out", str(tmp_path / "neighbours.json")])
    numbers = json.loads((tmp_path / "neighbours.json").read_text())
    assert [row["size"] for row in numbers["rows"]] == [[16, 8, 5], [64, 8, 5], [64, 4, 5], [64, 8, 3]]
    assert [row["share"] is None for row in numbers["rows"]] == [False, False, True, False]
    rows, counts, frame, pending = 64 * 5 * 4, 2 * 8, 2 * 5 * 4, 64 * 6 * 4
    assert numbers["rows"][1]["bytes"] == rows + counts + frame + pending
    assert (tmp_path / "neighbours.png").exists()
    text = (tmp_path / "neighbours.md").read_text()
    assert "Below 0.5% of a full step (cifar-resnet8, 8 px, batch 8): " in text


@pytest.mark.parametrize(("shares", "most"), [((0.001, 0.004, 0.1), 30), ((0.01, 0.001, 0.1), None)])
def test_a_cost_is_negligible_up_to_the_first_size_where_it_is_not(shares, most):
    sizes = zip((20, 30, 40), shares, strict=True)
    rows = [{"varied": "rows", "size": [rows, 8, 5], "share": share} for rows, share in sizes]
    assert neighbours.negligible({"rows": rows[::-1]}) == most


def test_what_two_processes_send_is_what_the_shapes_say(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "START", "fork")
    studies.main(["scaling", *STEP, "--out", str(tmp_path / "scaling.json")])
    numbers = json.loads((tmp_path / "scaling.json").read_text())
    assert [(row["scaling"], row["processes"], row["batch"]) for row in numbers["rows"]] == [
        ("weak", 1, 8),
        ("weak", 2, 8),
        ("strong", 2, 4),
    ]
    for row in numbers["rows"][1:]:
        assert row["sketch"]["sent"] == row["sketch"]["expected"]
        assert row["sketch"]["sent"].keys() == {"broadcast", "all-reduce", "all-gather"}
        assert row["full"]["sent"] == {k: v for k, v in row["sketch"]["sent"].items() if k != "all-gather"}
    assert not numbers["rows"][0]["sketch"]["sent"]


def test_a_batch_that_cannot_be_shared_out_is_refused(capsys):
    with pytest.raises(SystemExit):
        studies.main(["scaling", "--batch-size", "9"])
    assert "--batch-size must be a multiple of every number of --processes" in capsys.readouterr().err


def test_many_gpus_save_less_where_gradients_are_waited_for():
    fast, slow = (paper.Cluster(8, bandwidth, 0.0, "") for bandwidth in (1e15, 1e9))
    part = paper.Part("m", 250_000_000, 1.0, 0.5, 0.5, measured=True)
    assert paper.saved(part, fast) == pytest.approx(0.5, abs=1e-3)
    ring = 2 * 7 / 8  # seconds for 1 GB
    gather = 7 * 4 * 513 * 39 / 1e9
    assert paper.saved(part, slow) == pytest.approx(1 - (0.5 + ring - 1 / 3 + gather) / (1 + ring - 2 / 3), abs=1e-6)


def test_estimates_are_of_the_steps_measured_on_a_gpu_if_there_are_any(tmp_path):
    step = {"seconds": {"median": 0.2}, "ratio": {"median": 0.6}}
    numbers = {
        "device_type": "cuda",
        "config": {"model": "cifar-resnet8", "image_size": 8, "classes": 4, "compile": "no"},
        "results": [{"prune": 0.4, "steps": {"full": step, "sketch": step}}],
    }
    (tmp_path / "speed-a.json").write_text(json.dumps(numbers))
    (tmp_path / "speed-b.json").write_text(json.dumps(numbers | {"device_type": "cpu"}))
    assert {(row["model"], row["seconds"], row["ratio"]) for row in paper.estimates(tmp_path)} == {
        ("cifar-resnet8", 0.2, 0.6)
    }
    assert "cifar-resnet8, 0.1 M parameters, 200 ms | 40% | 64 | 40.0 |" in paper.render(paper.estimates(tmp_path))
    assert all(not row["measured"] for row in paper.estimates(None))


def test_the_plain_loop_is_timed_beside_the_trainer(tmp_path):
    recipe = ["--recipe.model", "cifar-resnet8", "--recipe.train-samples", "64", "--recipe.batch-size", "32"]
    few = ["--recipe.epochs", "1", "--recipe.track", "none", "--recipe.cpu", "--seeds", "0"]
    studies.main(["trainer", *recipe, *few, "--out", str(tmp_path / "trainer.json")])
    numbers = json.loads((tmp_path / "trainer.json").read_text())
    (pair,) = numbers["pairs"]
    assert numbers["steps"] == 2
    for arm in ("plain", "trainer"):
        assert 0 < pair[arm]["epochs"] < pair[arm]["whole"]
    assert "tmp" not in json.dumps(numbers), "no folder of this machine in the results"


def test_the_plain_loop_learns_as_the_trainer_does(tmp_path):
    config = TrainConfig(model="cifar-resnet8", epochs=3, batch_size=32, train_samples=400)
    found = trainer.plain_loop(config, load(config), torch.device("cpu"), tmp_path)
    assert found["accuracy"] > 0.4
    assert len(list(tmp_path.iterdir())) == 3


def test_the_trainer_is_judged_pair_by_pair():
    times = [{"trainer": 1.01 * s, "plain": s} for s in (1.0, 10.0, 5.0)]
    pairs = [
        {arm: {"epochs": s, "whole": s * (1.1 if arm == "trainer" else 1), "accuracy": 0.5} for arm, s in pair.items()}
        for pair in times
    ]
    rows = trainer.render({"steps": 10, "pairs": pairs}).splitlines()
    assert rows[2].endswith("| +1.0 (+1.0 to +1.0) | at most 2% |")
    assert rows[3].endswith("| +11.1 (+11.1 to +11.1) | at most 2% (missed) |")
    assert rows[4].startswith("| a step, ms | 505.00 (")
    assert "| +5.00 ms (+3.00 to +7.50) |" in rows[4]
