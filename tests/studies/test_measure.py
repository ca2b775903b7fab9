"""Everything that is measured on a device, small, and its goals."""

import json

import pytest
import torch

import pfb
from pfb.lab import cli
from pfb.lab.train.models import build
from studies import __main__ as studies
from studies import goals, measure

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


@pytest.mark.parametrize(
    ("sizes", "speeds"),
    [
        ("gpu", {"resnet50", "resnet50-compiled", "resnet50-graphs", "resnet50-stem", "resnet18-cifar"}),
        ("cpu", {"resnet18-cifar", "resnet18-cifar-compiled", "swin-t", "vit-s"}),
    ],
)
def test_everything_is_measured_on_a_device(tmp_path, monkeypatch, capsys, sizes, speeds):
    """One command measures everything; a second one finds it there, and the report draws what was
    saved. Compiling is only asked for: it takes longer than all the rest.
    """
    modes = set()
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, dynamic, mode: modes.add(mode))
    command = ["measure", "--tiny", "--sizes", sizes, "--device", "cpu", "--out", str(tmp_path)]
    studies.main(command)
    assert modes == {"gpu": {None, "reduce-overhead"}, "cpu": {None}}[sizes]
    results = {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("*.json")}
    profiled = {"gpu": "profile-resnet50", "cpu": "profile-resnet18-cifar"}[sizes]
    assert set(results) == {f"speed-{name}" for name in speeds} | {profiled, "memory", "plan", "scoring"}
    for name, numbers in results.items():
        assert {"config", "versions", "device", "device_type", "threads"} <= numbers.keys(), name
        assert "tmp" not in json.dumps(numbers), "no folder of this machine in the results"
        assert (tmp_path / f"{name}.md").read_text().startswith("|")
    steps = results["speed-resnet18-cifar"]["results"][0]["steps"]
    assert steps["recompute-filled"]["samples"] == pfb.batch_size_for(8, 0.4)
    assert steps["recompute"]["saved_bytes"] < steps["reuse"]["saved_bytes"] < steps["full"]["saved_bytes"]
    goals = (tmp_path / "goals.md").read_text()
    assert all(f"| {name} | 40 | 38 |" in goals for name in speeds)
    capsys.readouterr()
    studies.main(command)
    assert capsys.readouterr().out.count("is there already") == len(results)
    page = tmp_path / "page.html"
    cli.main(["report", str(tmp_path / "speed-resnet18-cifar.json"), "--out", str(page)])
    assert "Time saved (speed-resnet18-cifar)" in page.read_text()
    with pytest.raises(SystemExit):
        cli.main(["report", str(tmp_path / "plan.json"), "--out", str(page)])
    assert "no result of pfb bench speed" in capsys.readouterr().err


def test_the_layers_and_settings_of_the_published_parts_exist():
    parts = dict(measure._on_gpu(measure.MeasureConfig())) | dict(measure._on_cpu(measure.MeasureConfig()))
    assert {"speed-resnet50-stem", "profile-vit-s", "speed-swin-t", "memory", "plan", "scoring"} <= parts.keys()
    assert isinstance(build("resnet50", 1000, 3, 224).maxpool, torch.nn.MaxPool2d), "the stem's cut"


def test_a_part_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    def parts(config):
        yield "profile-a", lambda file: file.write_text("{}")
        yield "profile-b", lambda file: 1 / 0
        yield "profile-c", lambda file: file.write_text("{}")

    monkeypatch.setattr(measure, "_on_cpu", parts)
    with pytest.raises(SystemExit):
        studies.main(["measure", "--sizes", "cpu", "--out", str(tmp_path)])
    shown = capsys.readouterr()
    assert "ZeroDivisionError" in shown.out
    assert "profile-b failed" in shown.err
    assert {p.name for p in tmp_path.iterdir()} == {"profile-a.json", "profile-c.json", "goals.md"}


def speed_result(model, prune, **saved):
    steps = {name.replace("_", "-"): {"ratio": {"median": 1 - share}} for name, share in saved.items()}
    return {
        "config": {"model": model},
        "device_type": "cuda",
        "results": [{"prune": prune, "steps": steps, "scoring_share": 0.006}],
    }


def test_goals_stand_beside_what_was_measured(tmp_path):
    resnet = speed_result(
        "resnet50", 0.4, reuse=0.3, recompute=0.36, recompute_half=0.385, uniform_recompute=0.4, ideal=0.4
    )
    swin = speed_result("swin_t", 0.5, reuse=0.4, recompute=0.475)
    without_goal = speed_result("resnet50", 0.7, reuse=0.5)
    plan = {
        "rows": [
            {
                "model": model,
                "predicted": {"reuse": 0.7, "recompute": 0.6},
                "measured": {"reuse": {"median": 0.7}, "recompute": {"median": 0.6 + error}},
            }
            for model, error in (("resnet50", 0.029), ("swin_t", -0.04))
        ]
    }
    memory = {
        "config": {"models": ["resnet50"]},
        "rows": [
            {"model": "resnet50", "step": step, "largest_tried": tried, "largest_estimated": 1}
            for step, tried in (("full", 100), ("reuse", 120), ("recompute", 160))
        ],
    }
    for name, numbers in {
        "speed-resnet50": resnet,
        "speed-swin-t": swin,
        "speed-resnet50-most": without_goal,
        "plan": plan,
        "memory": memory,
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(numbers))
    assert goals.saved_goal("swin_t", 0.5, "cpu") is None
    rows = goals.render(tmp_path).splitlines()
    assert rows[2:4] == [
        "| resnet50 | 40 | 38 | 40.0 | 30.0 (-8.0) | 36.0 (-2.0) |  |  | 38.5 | 40.0 |",
        "| swin-t | 50 | 47.5 |  | 40.0 (-7.5) | 47.5 |  |  |  |  |",
    ]
    assert rows[4] == "", "no goal was set for 70 %"
    assert "| density, choice and update, of a full step of resnet50 | below 0.5% | 0.60% (missed) |" in rows
    assert rows[-2].endswith("| at least 5 | 1 of 2, worst error 4.0 (missed) |")
    assert rows[-1].endswith("| `reuse` 1.20, `recompute` 1.60 |")
