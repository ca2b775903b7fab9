"""The comparison's statistics by hand; every benchmark end to end, small."""

import json

import pytest
import torch

import pfb
from pfb.lab import cli
from pfb.lab.bench import memory, output, speed
from pfb.lab.bench.setup import VARIANTS, Device, Step
from pfb.lab.errors import RunError
from pfb.lab.train.paired.twins import paired_difference

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


def test_paired_differences_by_hand():
    pruned, full = ({seed: {"test_accuracy": x} for seed, x in enumerate(pair)} for pair in ((0.79, 0.79), (0.8, 0.82)))
    mean, half = paired_difference(pruned, full)
    assert mean == pytest.approx(-2.0)  # -1 and -3 points
    # Student's t for one degree of freedom is 12.706; the standard error of (-1, -3) is sqrt(2) /
    # sqrt(2) = 1.
    assert half == pytest.approx(12.7062, abs=1e-3)
    assert paired_difference({0: pruned[0]}, full) is None


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (speed.SpeedConfig, {"variants": ("paper", "papre")}, "--variants: no 'papre' .* Did you mean 'paper'"),
        (speed.SpeedConfig, {"prunes": (0.4, float("nan"))}, r"--prunes must be in \[0, 1\) \(got nan\)"),
        (speed.SpeedConfig, {"repeats": 0}, "--repeats must be at least 1"),
        (speed.SpeedConfig, {"memory": (64, 1)}, "--memory must be at least 2"),
        (speed.SpeedConfig, {"warmup": -1}, "--warmup must be at least 0"),
        (speed.SpeedConfig, {"batch_size": 0}, "--batch-size must be at least 1"),
        (speed.SpeedConfig, {"memory": ()}, "--memory needs at least one value"),
        (memory.MemoryConfig, {"image_size": -8}, "--image-size must be at least 1"),
        (memory.MemoryConfig, {"prune": 1.5}, "--prune must be in"),
        (memory.MemoryConfig, {"budget_gib": 0}, "--budget-gib must be positive"),
        (memory.MemoryConfig, {"on": Device(clock="cpu")}, "--clock has no effect here"),
        (Device, {"threads": 0}, "--threads must be at least 1"),
        (Device, {"device": "gpu"}, "--device gpu: "),
    ],
)
def test_a_benchmark_refuses(settings, change, message):
    with pytest.raises(RunError, match=message):
        settings(**change)


def test_unknown_names_end_a_benchmark_before_anything_is_measured(tmp_path, capsys):
    for command, said in (
        (["speed", "--variants", "papre"], "Did you mean 'paper'"),
        (["speed", "--model", "cifar-resnet8", "--cut", "layer9"], "layer9"),
        (["memory", "--model", "resnet19"], "resnet19"),
        (["memory", "--model", "cifar-resnet8", "--device", "cuda:99"], "--device cuda:99 cannot be used here"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["bench", *command, "--batch-size", "4", "--out", str(tmp_path / "numbers.json")])
        assert stopped.value.code == 1
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mode", "rounds"), [("no", 1), ("default", 4)])
def test_a_compiled_step_is_warm_when_its_graphs_are_there(mode, rounds):
    assert speed._warmup(speed.SpeedConfig(batch_size=64, warmup=1, compile=mode)) == rounds


STEP = ["--model", "cifar-resnet8", "--image-size", "8", "--batch-size", "64", "--repeats", "1", "--warmup", "0"]


def test_steps_beyond_the_ideal_one_are_compared_round_by_round(tmp_path, capsys):
    cli.main(["bench", "speed", *STEP, "--prunes", "0.5", "--memory", "64", "--out", str(tmp_path / "numbers.json")])
    (result,) = json.loads((tmp_path / "numbers.json").read_text())["results"]
    steps = result["steps"]
    assert set(steps) == {"full", "ideal", *VARIANTS}
    assert [steps[name]["cut"] for name in VARIANTS] == [None, None, "layer1", "layer1"]
    (full,), (ideal,), (copies,) = (steps[name]["raw"] for name in ("full", "ideal", "copies"))
    assert steps["copies"]["beyond_ideal"]["median"] == pytest.approx((copies - ideal) / full, rel=1e-2)
    assert steps["copies"]["saved_bytes"] == pytest.approx(steps["ideal"]["saved_bytes"], rel=0.05)
    assert steps["copies"]["saved_bytes"] < steps["paper"]["saved_bytes"]
    assert steps["paper"]["saved_bytes"] < steps["full"]["saved_bytes"]
    assert result["pruner"]["64"]["seconds"]["median"] > 0
    assert "copies, pruner alone, memory 64" in capsys.readouterr().out


def test_steps_are_compiled_side_by_side(tmp_path, monkeypatch):
    """By a compiler that only follows the Python code, which is what may mix up two models."""
    compile, settings = torch.nn.Module.compile, torch._dynamo.config.cache_size_limit
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, dynamic, mode: compile(self, backend="eager"))
    rounds = ["--compile", "default", "--memory", "64", "--out", str(tmp_path / "numbers.json")]
    cli.main(["bench", "speed", *STEP, *rounds, "--variants", "copies", "paper"])
    (result,) = json.loads((tmp_path / "numbers.json").read_text())["results"]
    assert result["steps"]["paper"]["cut"] == "layer1"
    assert result["steps"]["paper"]["saved_bytes"] is None, "of a compiled model it cannot be told"
    assert torch._dynamo.config.cache_size_limit == settings


def test_a_variant_is_what_its_name_says():
    def tool(name):
        return VARIANTS[name](Step(speed.SpeedConfig("cifar-resnet8")).model, "layer1", 0.4)

    copies, uniform, paper, before = map(tool, ("copies", "uniform", "paper", "paper-before"))
    default = pfb.BatchPruner()
    assert (copies.rule, copies.features.name, copies.prune) == (default.rule, default.features.name, 0.4)
    assert uniform.rule == pfb.Uniform()
    assert (paper.cut, paper.prune, type(paper.density)) == ("layer1", 0.4, pfb.MovingCenters)
    assert (before.rule, before.features.cut) == (pfb.RareFirst(), "layer1")


def test_a_tables_rows_are_as_long_as_its_header():
    with pytest.raises(ValueError, match="2 cells"):
        output.table(["a", "b"], [["1", "2"], ["1", "2", "3"]])


def test_settings_of_the_device_stand_among_the_others_in_a_result():
    config = output.origin({"model": "m", "out": "x", "on": {"device": "cpu", "threads": 1}}, torch.device("cpu"))[
        "config"
    ]
    assert config == {"model": "m", "device": "cpu", "threads": 1}


def test_the_largest_batch_of_a_pruned_step_is_larger(tmp_path, capsys):
    sizes = ["--model", "cifar-resnet8", "--image-size", "8", "--batch-size", "8", "--device", "cpu"]
    cli.main(["bench", "memory", *sizes, "--out", str(tmp_path / "numbers.json")])
    rows = {row["step"]: row for row in json.loads((tmp_path / "numbers.json").read_text())["rows"]}
    full, copies = (rows[name]["largest_estimated"] for name in ("full", "copies"))
    assert 1.3 * full < copies
    assert f"| {full} | 1.00 |" in capsys.readouterr().out


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 100, 511, 512])
def test_the_largest_batch_is_found(limit):
    assert memory.largest(lambda n: n <= limit) == limit
    assert memory.largest(lambda n: True, limit=64) == 64
