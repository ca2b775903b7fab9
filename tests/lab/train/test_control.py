"""A run's twins cost what they should, are trained once, and are told apart in any set of runs."""

import dataclasses
import json

import pytest

from pfb.lab import cli
from pfb.lab.errors import RunError
from pfb.lab.train import loop
from pfb.lab.train.options.config import TrainConfig
from pfb.lab.train.output.folder import RunFolder
from pfb.lab.train.paired import control, twins
from tests.lab.train.runs import content, interrupt_evaluation

ACCURACY = {"run": 0.80, "full": 0.84, "short": 0.76, "small-batch": 0.78}
COMPUTE = 0.6


def summary_of(config, arm, accuracy):
    """What a run of these settings might write, on a CPU."""
    compute = COMPUTE if arm == "run" else 1.0
    steps = config.epochs * (400 // config.batch_size)
    return {
        "config": json.loads(config.to_json()),
        "processes": 1,
        "device": "some processor, 1 threads",
        "test_accuracy": accuracy + 0.01 * config.seed * (arm == "full"),
        "full_samples": steps * config.batch_size,
        "compute": compute,
        "train_seconds": 99.0,
        "train_cpu_seconds": 10.0 * steps * config.batch_size / 4000 * compute,
    }


@pytest.fixture
def trained(monkeypatch):
    """Trainings that only write what is looked at, and are listed."""
    done = []

    def train(config, resume=False, source=None):
        folder = RunFolder(config.out)
        if resume and (there := folder.summary_of(config)) is not None:
            return there
        folder.claim(config.overwrite)
        folder.begin(config)
        arm = next((arm for arm in ("full", "short", "small-batch") if f"-{arm}" in config.out.name), "run")
        done.append((config.out.name, config.seed, config.method, config.epochs, config.batch_size))
        summary = summary_of(config, arm, ACCURACY[arm])
        folder.write_summary(summary)
        return summary

    monkeypatch.setattr(loop, "train", train)
    return done


def settings(out, **changes):
    small = {"method": "uniform", "epochs": 10, "batch_size": 40, "train_samples": 400, "prune": 0.5}
    return TrainConfig(**{**small, "out": out, **changes})


def test_all_twins_are_trained_at_the_compute_of_the_run(tmp_path, trained):
    rows = control.start(settings(tmp_path / "a"), ("small-batch", "full", "short"))
    assert trained == [
        ("a", 0, "uniform", 10, 40),
        ("a-full", 0, "full", 10, 40),
        ("a-short", 0, "full", 6, 40),
        ("a-small-batch", 0, "full", 6, 24),  # 6 epochs of 16 steps, near the run's 100
    ]
    assert [row.kind for row in rows] == ["run", "full", "short", "small-batch"]
    assert [row.compute for row in rows] == pytest.approx([0.6, 1.0, 0.6, 0.576])
    assert [row.gain for row in rows[1:]] == pytest.approx([-4.0, 4.0, 2.0])
    assert [row.half for row in rows] == [None] * 4
    assert rows[1].time_saved == pytest.approx(0.4)
    assert RunFolder(tmp_path / "a").summary()["control"] == [dataclasses.asdict(row) for row in rows]


def test_every_seed_has_its_pairs_and_the_difference_an_interval(tmp_path, trained):
    rows = control.start(settings(tmp_path / "a"), ("full",), (3, 4))
    assert [name for name, *_ in trained] == ["a", "a-full", "a-seed4", "a-full-seed4"]
    assert [seed for _, seed, *_ in trained] == [3, 3, 4, 4]
    assert [row.seeds for row in rows] == [[3, 4], [3, 4]]
    # Full data has 87 % and 88 %: differences of -7 and -8 points, and t = 12.706 for one degree of
    # freedom.
    assert rows[1].gain == pytest.approx(-7.5)
    assert rows[1].half == pytest.approx(12.7062 * 0.5, abs=1e-3)
    assert twins.verdicts(rows)[0].startswith("uniform 50% is worse than full: -7.50 ± 6.35 points, at 60% of")


def test_seeds_without_twins_are_a_mean(tmp_path, trained):
    rows = control.start(settings(tmp_path / "a"), (), (0, 1))
    assert [name for name, *_ in trained] == ["a", "a-seed1"]
    assert [(row.kind, row.seeds, row.accuracy) for row in rows] == [("run", [0, 1], 80.0)]


def test_twins_and_seeds_can_be_added_later_and_nothing_is_trained_twice(tmp_path, trained):
    control.start(settings(tmp_path / "a"))
    assert control.go_on(tmp_path / "a") == []
    control.go_on(tmp_path / "a", ("short",))
    control.go_on(tmp_path / "a", ("full",), (0, 1))
    before = content(tmp_path)
    rows = control.go_on(tmp_path / "a")
    assert [name for name, *_ in trained] == ["a", "a-short", "a-full", "a-seed1", "a-full-seed1", "a-short-seed1"]
    assert [row.kind for row in rows] == ["run", "full", "short"]
    assert content(tmp_path) == before


def test_overwriting_trains_all_again_and_a_run_alone_forgets_its_twins(tmp_path, trained):
    control.start(settings(tmp_path / "a"), ("full",))
    with pytest.raises(RunError, match="--resume .*or pass --overwrite"):
        control.start(settings(tmp_path / "a"), ("full",))
    control.start(settings(tmp_path / "a", overwrite=True), ("full",))
    assert [name for name, *_ in trained] == ["a", "a-full"] * 2
    control.start(settings(tmp_path / "a", overwrite=True))
    assert control.go_on(tmp_path / "a") == []
    assert [name for name, *_ in trained] == ["a", "a-full"] * 2 + ["a"]


def test_killed_while_it_begins_anew_no_older_plan_is_followed(tmp_path, trained, monkeypatch):
    out = tmp_path / "a"
    control.start(settings(out), ("full",))
    (out / "checkpoint_0001").mkdir()
    monkeypatch.setattr(control, "_write", lambda *_: 1 / 0)  # where the kill comes
    with pytest.raises(ZeroDivisionError):
        control.start(settings(out, overwrite=True, epochs=9), ("short",))
    assert RunFolder(out).config().epochs == 9
    assert control.read(out) is None


def test_minutes_are_for_a_run_alone(tmp_path, trained):
    control.start(settings(tmp_path / "a"), ("full",))
    with pytest.raises(RunError, match="--minutes ends a run alone, and the one in .*a has twins .*leave it out"):
        control.go_on(tmp_path / "a", minutes=1.0)


def test_a_folder_that_is_taken_is_refused_before_anything_is_trained(tmp_path, trained):
    control.start(settings(tmp_path / "a-short"))
    with pytest.raises(RunError, match="a-short is not empty"):
        control.start(settings(tmp_path / "a"), ("short",))
    assert not (tmp_path / "a").exists()


def test_twins_of_other_settings_are_not_taken_for_the_runs_own(tmp_path, trained):
    control.start(settings(tmp_path / "a"))
    control.start(settings(tmp_path / "a-full", method="full", lr=0.01))
    with pytest.raises(RunError, match="belongs to other settings: --lr"):
        control.go_on(tmp_path / "a", ("full",))


def test_a_run_too_short_for_a_shorter_one_says_so(tmp_path, trained, capsys):
    rows = control.start(settings(tmp_path / "a", epochs=1), ("full", "short"))
    assert [row.kind for row in rows] == ["run", "full"]
    assert "1 epochs again; left out" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("changes", "seeds", "said"),
    [
        ({"method": "full"}, (), "--control compares a run that leaves samples out .*got --method full"),
        ({"prune": 0.0}, (), "got --prune 0"),
        ({"seed": 7}, (0, 1), "leave out --seed .got 7"),
        ({}, (0, -1), "--seed must be a whole number"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, trained, changes, seeds, said):
    for act in (control.start, control.check):
        with pytest.raises(RunError, match=said):
            act(settings(tmp_path / "a", **changes), ("full",), seeds)
    assert not list(tmp_path.iterdir())


def test_several_processes_are_refused(tmp_path, trained, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="in one process .got 2"):
        control.start(settings(tmp_path / "a"), ("full",))
    assert control.start(settings(tmp_path / "a")) == []


@pytest.mark.parametrize(
    "text", ["{", "[]", "[" * 100_000, '{"arms": ["ful"], "seeds": [0]}', '{"arms": [], "seeds": []}']
)
def test_a_damaged_plan_is_one_line(tmp_path, trained, text):
    control.start(settings(tmp_path / "a"), ("full",))
    (tmp_path / "a" / "control.json").write_text(text)
    with pytest.raises(RunError, match="control.json is damaged"):
        control.go_on(tmp_path / "a")


def test_a_full_disk_names_the_command_for_all(tmp_path, trained, monkeypatch):
    def train(config, resume=False, source=None):
        with RunFolder(config.out).saying_how_to_go_on():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(RunError, match=r"No space left on device. .*continue with: pfb train --resume \S*/a$"):
        control.start(settings(tmp_path / "a"), ("full",))


def test_what_a_run_is_to_another():
    run = json.loads(settings("a", method="copies").to_json())
    full, uniform = {**run, "method": "full"}, {**run, "method": "uniform"}
    assert twins.kind(run, full) == "full"
    assert twins.kind(run, {**full, "prune": 0.0, "out": "b", "memory": None}) == "full"
    assert twins.kind(run, {**full, "epochs": 6}) == "short"
    assert twins.kind(run, {**full, "epochs": 6, "batch_size": 24}) == "small-batch"
    assert twins.kind(run, uniform) == "uniform"
    for other in (
        {**full, "epochs": 11},
        {**full, "batch_size": 80},
        {**full, "lr": 1.0},
        {**full, "seed": 1},
        {**uniform, "prune": 0.4},
        {**uniform, "epochs": 6},
        run,
    ):
        assert twins.kind(run, other) is None
    assert twins.kind(full, full) is None
    assert twins.kind(uniform, uniform) is None


def test_two_choices_of_samples_share_their_twins():
    runs = [settings("a", method=method) for method in ("uniform", "copies", "full")]
    found = twins.compare([summary_of(run, "run", 0.8) for run in runs])
    assert [[row.kind for row in rows] for rows in found] == [["run", "full"], ["run", "full", "uniform"]]
    assert twins.compare([summary_of(runs[0], "run", 0.8), summary_of(runs[2], "full", 0.8) | {"config": {}}][:1]) == []


@pytest.mark.usefixtures("_fresh_accelerate")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_an_interrupted_comparison_goes_on_with_what_is_missing(tmp_path, monkeypatch, capsys):
    run = tmp_path / "a"
    flags = "--method uniform --prune 0.5 --epochs 4 --train-samples 160 --batch-size 32 --cpu"
    interrupted = pytest.MonkeyPatch()
    interrupt_evaluation(interrupted, at=7)  # four epochs and the training set of the run, then the short twin's second
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", *flags.split(), "--out", str(run), "--control", "short"])
    interrupted.undo()
    assert stopped.value.code == 130
    assert f"continue with: pfb train --resume {run}\n" in capsys.readouterr().err
    assert len(RunFolder(tmp_path / "a-short").checkpoints()) == 1
    before = content(run)
    cli.main(["train", "--resume", str(run)])
    assert "cannot be told" not in (said := capsys.readouterr().out)
    assert "uniform 50% minus short, 2 epochs" in said
    after = content(run)
    summary = RunFolder(run).summary()
    assert {name for name in after if after[name] != before[name]} == {"summary.json"}
    assert [row["kind"] for row in summary["control"]] == ["run", "short"]
    assert summary["control"][0]["compute"] == pytest.approx((3 + 17 * 0.5) / 20)  # 17 of 20 steps are pruned
    assert summary["control"][1]["compute"] == 0.5
    assert RunFolder(tmp_path / "a-short").config().method == "full"
