"""The comparison's statistics by hand; every benchmark end to end, small."""

import json
import math

import pytest
import torch

import pfb
from pfb.lab import cli
from pfb.lab.bench import accuracy, comparison, memory, output, profile, speed
from pfb.lab.bench.setup import Device, Step
from pfb.lab.bench.variants import VARIANTS
from pfb.lab.errors import RunError
from pfb.lab.train.config import TrainConfig
from pfb.lab.train.data import load
from pfb.lab.train.pairs import paired_difference

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


def run(method, prune, seed, accuracy, seconds=10.0, trained=500):
    return {
        "method": method,
        "prune": prune,
        "config": {
            "seed": seed,
            "method": method.split("-")[0],
            "shallow": method.split("-")[-1],
            "batch_size": 10,
            "scoring_scale": 0.5 if "half" in method else 1.0,
        },
        "cut": None if method == "full" else "layer1",
        "shallow_share": 0.3,
        "processes": 1,
        "pruned_steps": 100,
        "samples": 1000,
        "deep_samples": trained,
        "test_accuracy": accuracy,
        "train_accuracy": 0.99,
        "seconds": seconds,
        "full_samples": 1000,
        "trained_samples": trained,
        "kept_share_quantiles": [0.1, 0.9] if trained < 1000 else None,
        "curve": [[1, accuracy]],
    }


RUNS = [
    run("full", 0.0, 0, 0.80, 20.0, 1000),
    run("full", 0.0, 1, 0.82, 20.0, 1000),
    run("uniform-recompute", 0.5, 0, 0.78, 12.0),
    run("uniform-recompute", 0.5, 1, 0.80, 12.0),
    run("pfb-recompute", 0.5, 0, 0.79, 13.0),
    run("pfb-recompute", 0.5, 1, 0.79, 11.0),
]


def test_paired_differences_by_hand():
    groups = comparison.grouped(RUNS)
    pfb, full = groups["pfb-recompute", 0.5], groups["full", 0.0]
    mean, half = paired_difference(pfb, full)
    assert mean == pytest.approx(-2.0)  # -1 and -3 points
    # Student's t for one degree of freedom is 12.706; the standard error of (-1, -3) is sqrt(2) /
    # sqrt(2) = 1.
    assert half == pytest.approx(12.7062, abs=1e-3)
    assert paired_difference({0: RUNS[0]}, full) is None
    assert comparison.time_saved(pfb, full) == pytest.approx(1 - (13 / 20 + 11 / 20) / 2)


def test_the_table_compares_with_uniform_in_the_same_wiring():
    table = comparison.render(RUNS)
    row = next(line for line in table.splitlines() if line.startswith("| pfb-recompute"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["pfb-recompute", "0.5", "2", "79.00 ± 0.00"]
    assert cells[4].startswith("-2.00 ± 12.71")
    assert cells[5].startswith("+0.00 ± 12.71")
    # Half of 1000 samples trained, and 100 steps of 10 scored at 0.3 / 3 each: 1 - 0.5 - 0.1.
    assert cells[6:] == ["99.0", "10% to 90%", "50.0%", "40.0%", "40.0%"]


def test_one_more_column_compares_with_any_method():
    runs = [*RUNS, run("pfb-half-recompute", 0.5, 0, 0.77), run("pfb-half-recompute", 0.5, 1, 0.78)]
    header, _, *rows = comparison.render(runs, against="pfb-recompute").splitlines()
    place = header.split(" | ").index("minus pfb-recompute")
    columns = {row.strip("| ").split(" | ")[0]: row.strip("|").split("|")[place].strip() for row in rows}
    assert columns == {
        "full": "",
        "pfb-recompute": "",
        "uniform-recompute": "+0.00 ± 12.71",
        "pfb-half-recompute": "-1.50 ± 6.35",  # -2 and -1 points
    }


@pytest.mark.parametrize(
    ("method", "changes", "saved"),
    [
        ("full", {"trained_samples": 1000, "deep_samples": 1000}, 0.0),
        ("pfb-half-recompute", {}, 0.5 - 0.1 / 4),  # a scoring pass over a quarter of the pixels
        ("uniform-recompute", {}, 0.5),  # no scoring pass
        ("pfb-recompute", {"trained_samples": 1000, "deep_samples": 1000, "pruned_steps": 0}, 0.0),
        ("uniform-reuse", {}, 0.5 * 0.7),  # those stopped pay the shallow part
        ("selective-backprop", {"cut": None, "deep_samples": 500 + 1000}, 0.5 - 1 / 3),  # a forward of all
        ("infobatch", {"cut": None, "samples": 500}, 0.5),  # what is not loaded costs nothing
    ],
)
def test_compute_saved_by_hand(method, changes, saved):
    assert comparison.compute_saved({0: run(method, 0.5, 0, 0.8) | changes}, {}) == pytest.approx(saved)


def test_the_overview_has_a_row_per_method():
    rows = comparison.overview(RUNS).splitlines()
    assert rows[0] == "| method | 50% pruned | minus full |"
    assert rows[2:] == [
        "| full | 81.00 ± 1.41 (n = 2) |  |",
        "| uniform-recompute | 79.00 ± 1.41 (n = 2) | -2.00 ± 0.00 |",
        "| pfb-recompute | 79.00 ± 0.00 (n = 2) | -2.00 ± 12.71 |",
    ]


def test_one_seed_has_no_interval():
    assert "nan" in comparison.render(RUNS[:1])


def test_the_cells_of_a_grid():
    recipe = TrainConfig(train_samples=100, epochs=40)
    config = accuracy.AccuracyConfig(recipe, prunes=(0.3, 0.5), seeds=(0, 1))
    grid = accuracy.cells(config, load(recipe))
    assert len(grid) == 2 * (1 + 2 * (len(config.methods) - 1))
    assert len({cell.config.out for cell in grid}) == len(grid)
    short = {cell.prune: cell.config.epochs for cell in grid if cell.method == "full-short"}
    # ResNet-8 spends s = 40 % of its FLOPs up to layer1 at any image size, and 82.5 % of training
    # is pruned: reuse costs 1 - 0.3 * 0.6 = 0.82 there, recompute 1 - 0.5 + 0.4 / 3 = 0.63.
    assert short == {
        0.3: pytest.approx(40 * (1 - 0.825 * 0.18), abs=1.5),
        0.5: pytest.approx(40 * (1 - 0.825 * 0.37), abs=1.5),
    }
    shorter = {cell.prune: cell.config.epochs for cell in grid if cell.method == "full-short-uniform"}
    assert shorter == {0.3: 30, 0.5: 24}  # 40 * (1 - 0.825 * prune), without a shallow part
    parts = [accuracy.AccuracyConfig(recipe, seeds=(0, 1), shard=(part, 3)) for part in range(3)]
    assert all(part.shard[1] == 3 for part in parts)


def test_an_early_cut_lies_after_the_first_block_of_the_stage():
    recipe = TrainConfig(model="cifar-resnet14", train_samples=100)
    methods = ("pfb-recompute", "pfb-recompute-early")
    grid = accuracy.cells(accuracy.AccuracyConfig(recipe, methods, (0.5,), (0,)), load(recipe))
    assert [cell.config.cut for cell in grid] == [None, "layer1.0"]
    shallow = TrainConfig(model="cifar-resnet8", train_samples=100)
    with pytest.raises(RunError, match="'layer1' of cifar-resnet8 is a single block"):
        accuracy.cells(accuracy.AccuracyConfig(shallow, methods, (0.5,), (0,)), load(shallow))


def test_two_levels_leave_out_the_share_together():
    recipe = TrainConfig(train_samples=100)
    (cell,) = accuracy.cells(accuracy.AccuracyConfig(recipe, ("two-level-recompute",), (0.5,), (0,)), load(recipe))
    assert (1 - cell.config.skip) * (1 - cell.config.prune) == pytest.approx(1 - 0.5)
    assert cell.prune == 0.5
    with pytest.raises(RunError, match=r"above 0\.2 for two-level-recompute.*got 0\.1"):
        accuracy.cells(accuracy.AccuracyConfig(recipe, ("two-level-recompute",), (0.1,), (0,)), load(recipe))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("magic",)}, "--methods: no 'magic' among full"),
        ({"against": "pfb-recomputed"}, "--against: no .* Did you mean 'pfb-recompute'"),
        ({"methods": ()}, "--methods needs at least one value"),
        ({"prunes": (0.3, 1.0)}, r"--prunes must be in \[0, 1\) \(got 1.0\)"),
        ({"prunes": ()}, "--prunes needs at least one value"),
        ({"seeds": (0, -1)}, r"--seeds must be at least 0 \(got -1\)"),
        ({"shard": (2, 2)}, "shard"),
    ],
)
def test_a_grid_refuses(change, message):
    with pytest.raises(RunError, match=message):
        accuracy.AccuracyConfig(**change)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (speed.SpeedConfig, {"variants": ("reuse", "reuze")}, "--variants: no 'reuze' .* Did you mean 'reuse'"),
        (speed.SpeedConfig, {"prunes": (0.4, float("nan"))}, r"--prunes must be in \[0, 1\) \(got nan\)"),
        (speed.SpeedConfig, {"repeats": 0}, "--repeats must be at least 1"),
        (speed.SpeedConfig, {"memory": 1}, "--memory must be at least 2"),
        (speed.SpeedConfig, {"warmup": -1}, "--warmup must be at least 0"),
        (speed.SpeedConfig, {"batch_size": 0}, "--batch-size must be at least 1"),
        (profile.ProfileConfig, {"image_size": -8}, "--image-size must be at least 1"),
        (profile.ProfileConfig, {"prune": 1.5}, "--prune must be in"),
        (memory.MemoryConfig, {"models": ()}, "--models needs at least one value"),
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
        (["speed", "--variants", "reuze"], "Did you mean 'reuse'?"),
        (["speed", "--model", "cifar-resnet8", "--cut", "layer9"], "layer9"),
        (["memory", "--models", "cifar-resnet8", "resnet19"], "resnet19"),
        (["profile", "--model", "cifar-resnet8", "--device", "cuda:99"], "--device cuda:99 cannot be used here"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["bench", *command, "--batch-size", "4", "--out", str(tmp_path / "numbers.json")])
        assert stopped.value.code == 1
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_small_grid_resumes_skips_and_writes_everything(tmp_path, capsys):
    methods = ["full", "full-short", "pfb-recompute", "infobatch", "orderdp", "selective-backprop", "release-reuse"]
    grid = ["bench", "accuracy", "--recipe.train-samples", "128", "--recipe.epochs", "3", "--recipe.batch-size", "32"]
    grid += ["--recipe.cpu", "--recipe.n-centers", "8", "--prunes", "0.5", "--methods", *methods]
    grid += ["--root", str(tmp_path)]
    cli.main([*grid, "--seeds", "0"])
    first = comparison.read(tmp_path / "runs.jsonl")
    assert {r["method"] for r in first} == set(methods)
    assert "tmp" not in (tmp_path / "runs.jsonl").read_text(), "no folder of this machine in the results"
    by_method = {r["method"]: r for r in first}
    assert by_method["full-short"]["config"]["epochs"] < 3
    for method in ("pfb-recompute", "orderdp", "selective-backprop", "release-reuse"):
        assert by_method[method]["trained_samples"] < by_method["full"]["trained_samples"], method
    low, high = by_method["pfb-recompute"]["kept_share_quantiles"]
    assert 0 <= low < 0.5 < high <= 1
    assert by_method["full"]["kept_share_quantiles"] is None
    assert by_method["orderdp"]["samples"] < by_method["full"]["samples"]
    assert by_method["selective-backprop"]["deep_samples"] > by_method["selective-backprop"]["samples"]

    (tmp_path / "pfb-recompute-prune0.5-seed0" / "summary.json").unlink()
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/summary.json")}
    cli.main([*grid, "--seeds", "0", "1", "--shard", "0", "2"])
    assert all(p.stat().st_mtime_ns == t for p, t in times.items()), "finished cells are not run again"
    again = comparison.read(tmp_path / "runs.jsonl")
    assert len(first) < len(again) < 2 * len(first)
    for name in ("tradeoff.png", "curves.png", "table.md"):
        assert (tmp_path / name).stat().st_size > 0
    assert not math.isnan(torch.tensor([r["test_accuracy"] for r in again]).sum().item())


@pytest.mark.parametrize(("mode", "rounds"), [("no", 1), ("default", 2 + 2)])
def test_a_compiled_step_is_warm_when_its_centers_are_gathered(mode, rounds):
    """64 centers come from two batches of which 39 samples go on."""
    assert speed._warmup(speed.SpeedConfig(batch_size=64, warmup=1, compile=mode), 0.4) == rounds


def test_a_model_of_one_size_only_is_timed_without_the_half_sized_pass(tmp_path, capsys):
    step = ["--model", "timm:vit_tiny_patch16_224", "--image-size", "32", "--batch-size", "128"]
    rounds = ["--repeats", "1", "--warmup", "0", "--memory", "64", "--out", str(tmp_path / "numbers.json")]
    cli.main(["bench", "speed", *step, *rounds, "--variants", "recompute", "recompute-half"])
    (result,) = json.loads((tmp_path / "numbers.json").read_text())["results"]
    assert set(result["steps"]) == {"full", "ideal", "recompute"}
    assert "does not take half the size" in capsys.readouterr().out
    cli.main(["bench", "profile", *step, *rounds[:4], *rounds[6:]])
    parts = json.loads((tmp_path / "numbers.json").read_text())["parts"]
    assert set(parts) == set(profile.STEPS) - {"recompute-half"}
    medians = {name: [parts[name][part]["median"] for part in profile.PARTS] for name in parts}
    assert all(seconds >= 0 for times in medians.values() for seconds in times)
    scored = {name for name, (first_pass, *_) in medians.items() if first_pass > 0}
    decided = {name for name, (_, choice, *_) in medians.items() if choice > 0}
    assert scored == {"sketch", "recompute"}
    assert decided == {"sketch", "recompute", "reuse"}, "uniform blocking asks for no density"


def test_a_gpt_is_timed_on_sequences_of_tokens(monkeypatch):
    """Of its published sizes, without its layers: they would take seconds."""
    import transformers

    shape = transformers.GPT2Config
    monkeypatch.setattr(transformers, "GPT2Config", lambda **sizes: shape(**sizes, n_layer=2))
    step = Step(speed.SpeedConfig("gpt2", image_size=8, classes=100), "gpt2", {"prune": 0.5})
    layer = 12 * 768**2 + 13 * 768
    assert sum(p.numel() for p in step.model.parameters()) == (100 + 8) * 768 + 2 * layer + 2 * 768
    tokens, following = step.batch(4)
    assert tokens.shape == following.shape == (4, 8)
    assert torch.equal(tokens[:, 1:], following[:, :-1])
    assert step.loss(tokens, following).isfinite()
    assert step.blocker.selection.indices.shape == (2,)


def test_steps_are_compiled_side_by_side(tmp_path, monkeypatch):
    """By a compiler that only follows the Python code, which is what may mix up two models."""
    compile, settings = torch.nn.Module.compile, torch._dynamo.config.cache_size_limit
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, dynamic, mode: compile(self, backend="eager"))
    step = ["--model", "cifar-resnet8", "--image-size", "8", "--batch-size", "64", "--compile", "default"]
    rounds = ["--repeats", "1", "--warmup", "0", "--memory", "64", "--out", str(tmp_path / "numbers.json")]
    cli.main(["bench", "speed", *step, *rounds, "--variants", "reuse"])
    (result,) = json.loads((tmp_path / "numbers.json").read_text())["results"]
    assert result["steps"]["reuse"]["cut"] == "layer1"
    assert result["steps"]["reuse"]["saved_bytes"] is None, "of a compiled model it cannot be told"
    assert torch._dynamo.config.cache_size_limit == settings


def test_a_variant_asks_for_what_its_name_says():
    arguments = {name: variant.attach("layer1", 0.4) for name, variant in VARIANTS.items()}
    paper = {"importance": pfb.RareFirst(), "features": None}
    assert arguments["reuse"] == {"cut": "layer1", "prune": 0.4, "shallow": pfb.Reuse(), **paper}
    assert arguments["recompute-half"]["shallow"] == pfb.Recompute(scale=0.5)
    rules = {name: type(given["importance"]) for name, given in arguments.items()}
    assert {name for name, rule in rules.items() if rule is pfb.Uniform} == {"uniform-recompute"}
    assert {name for name, rule in rules.items() if rule is pfb.InverseDensity} == {"sketch", "momentum"}
    assert arguments["momentum"]["features"] == "momentum"
    assert not VARIANTS["uniform-recompute"].scores


def test_a_tables_rows_are_as_long_as_its_header():
    with pytest.raises(ValueError, match="2 cells"):
        output.table(["a", "b"], [["1", "2"], ["1", "2", "3"]])


def test_settings_of_the_device_stand_among_the_others_in_a_result():
    config = output.origin({"model": "m", "out": "x", "on": {"device": "cpu", "threads": 1}}, torch.device("cpu"))[
        "config"
    ]
    assert config == {"model": "m", "device": "cpu", "threads": 1}


def test_one_table_shows_several_models():
    def result(name, **medians):
        steps = {step: {"ratio": {"median": m, "low": m - 0.1, "high": m + 0.1}} for step, m in medians.items()}
        return {"config": {"model": name}, "results": [{"prune": 0.4, "steps": steps}]}

    assert speed.overview(
        result("a", full=1.0, reuse=0.7), result("b", full=1.0, reuse=0.8, recompute=0.6)
    ).splitlines() == [
        "| time of a step saved, % (quartiles) | a, 40% pruned | b, 40% pruned |",
        "|---|---|---|",
        "| reuse | 30.0 (20.0 to 40.0) | 20.0 (10.0 to 30.0) |",
        "| recompute |  | 40.0 (30.0 to 50.0) |",
    ]


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 100, 511, 512])
def test_the_largest_batch_is_found(limit):
    assert memory.largest(lambda n: n <= limit) == limit
    assert memory.largest(lambda n: True, limit=64) == 64


def test_the_saved_share_is_drawn_as_measured():
    row = {"ratio": {"median": 0.7, "low": 0.6, "high": 0.75}}
    numbers = {
        "config": {"model": "m", "image_size": 8, "batch_size": 4},
        "device": "d",
        "results": [{"prune": 0.4, "steps": {"full": row, "reuse": row}}],
    }
    axes = speed.draw(numbers).axes[0]
    (drawn,) = axes.containers
    assert drawn.lines[0].get_xydata().tolist() == [pytest.approx([40.0, 30.0])]
    low, high = drawn.lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(25.0), pytest.approx(40.0))
