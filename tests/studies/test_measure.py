"""Everything that is measured on a device, small, and its goals."""

import json

import pytest

from pfb.lab import cli
from studies import __main__ as studies
from studies import goals, measure

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


def test_one_command_measures_and_a_second_one_finds_it_there(tmp_path, capsys):
    """One part of each kind that has no test of its own; the report draws what was saved."""
    parts = ["speed-resnet18-cifar", "memory", "plan", "scoring"]
    command = ["measure", "--tiny", "--sizes", "cpu", "--device", "cpu", "--out", str(tmp_path), "--parts", *parts]
    studies.main(command)
    results = {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("*.json")}
    assert set(results) == set(parts)
    for name, numbers in results.items():
        assert {"config", "versions", "device", "device_type", "threads"} <= numbers.keys(), name
        assert "tmp" not in json.dumps(numbers), "no folder of this machine in the results"
        assert (tmp_path / f"{name}.md").read_text().startswith("|")
    (result,) = results["speed-resnet18-cifar"]["results"]
    steps = result["steps"]
    assert steps["recompute"]["saved_bytes"] < steps["reuse"]["saved_bytes"] < steps["full"]["saved_bytes"]
    assert result["sketch_share"] > 0 < result["scoring_share"]
    assert "| resnet18-cifar | 40 | 38 |" in (tmp_path / "goals.md").read_text()
    capsys.readouterr()
    studies.main(command)
    assert capsys.readouterr().out.count("is there already") == len(results)
    page = tmp_path / "page.html"
    cli.main(["report", str(tmp_path / "speed-resnet18-cifar.json"), "--out", str(page)])
    assert "Time saved (speed-resnet18-cifar)" in page.read_text()
    with pytest.raises(SystemExit):
        cli.main(["report", str(tmp_path / "plan.json"), "--out", str(page)])
    assert "no result of pfb bench speed" in capsys.readouterr().err


def test_every_published_model_is_measured_in_every_way():
    on_gpu, on_cpu = (dict(parts(measure.MeasureConfig(device="cpu"))) for parts in (measure._on_gpu, measure._on_cpu))
    for model in ("resnet50", "swin-t", "vit-s", "gpt2"):
        assert {f"speed-{model}", f"speed-{model}-compiled", f"speed-{model}-graphs", f"profile-{model}"} <= set(on_gpu)
        assert f"speed-{model}" in on_cpu
    assert {"neighbours", "scaling", "memory", "plan", "scoring"} <= on_gpu.keys() & on_cpu.keys()
    tiny = dict(measure._on_gpu(measure.MeasureConfig(device="cpu", tiny=True)))
    assert tiny.keys() < on_gpu.keys()


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        studies.main(["measure", "--sizes", "cpu", "--parts", "speed-resnet51"])
    assert "--parts: no 'speed-resnet51'" in capsys.readouterr().err


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


def speed_result(model, prune, peaks=(None,) * 4, **saved):
    """Three rounds of steps of 1 s if full; of a batch of 10."""
    seconds = {"full": [1.0] * 3} | {name.replace("_", "-"): [1 - x for x in share] for name, share in saved.items()}
    peak = dict(zip(("full", "ideal", "sketch", "recompute"), peaks, strict=True))
    steps = {
        name: {
            "ratio": {"median": sorted(raw)[1]},
            "raw": raw,
            "samples": 6 if name == "ideal" else 10,
            "saved_bytes": 600 if name == "ideal" else 1000,
            "peak_bytes": peak.get(name),
        }
        for name, raw in seconds.items()
    }
    result = {"prune": prune, "steps": steps, "scoring_share": 0.006}
    return {"config": {"model": model, "memory": 65_536}, "device_type": "cuda", "results": [result]}


def test_goals_stand_beside_what_was_measured(tmp_path):
    resnet = speed_result(
        "resnet50",
        0.4,
        peaks=(2000, 1600, 1630, 1650),
        ideal=(0.4, 0.3, 0.4),
        sketch=(0.396, 0.292, 0.38),
        recompute=(0.36, 0.36, 0.36),
        recompute_half=(0.385, 0.385, 0.385),
    )
    swin = speed_result("swin_t", 0.7, ideal=(0.7, 0.6, 0.7), sketch=(0.68, 0.58, 0.7))
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
    for name, numbers in {"speed-resnet50": resnet, "speed-swin-t": swin, "plan": plan, "memory": memory}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(numbers))
    rows = goals.render(tmp_path).splitlines()
    assert rows[2:4] == [
        "| resnet50 | 40 | 38 | 40.0 | 38.0 |  |  | 36.0 (-2.0) | 38.5 |  | +0.8 (+0.6 to +1.4) |",
        "| swin-t | 70 |  | 70.0 | 68.0 |  |  |  |  |  | +2.0 (+1.0 to +2.0) (missed) |",
    ]
    title = "choice and update with a memory of 65,536, of a full step of resnet50"
    assert f"| {title} | below 0.5% | 0.60% (missed) |" in rows
    below = "below full's, of the stopped samples' activations, resnet50 | at least 90% |"
    assert f"| peak memory of `sketch` {below} 92% |" in rows
    assert f"| peak memory of `recompute` {below} 88% (missed) |" in rows
    assert any(row.startswith("| kept for backward of `sketch`") and "0% (missed)" in row for row in rows)
    assert rows[-2].endswith("| at least 5 | 1 of 2, worst error 4.0 (missed) |")
    assert rows[-1].endswith("| `reuse` 1.20, `recompute` 1.60 |")
