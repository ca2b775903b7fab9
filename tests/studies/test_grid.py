"""The machine that runs arms in pairs, on tiny made data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pfb.lab.errors import RunError
from studies import __main__ as studies
from studies import arms, grid, sets, source_code, stream, verdicts

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # tiny data are all alike, which the library tells
]


@pytest.fixture
def folder(tmp_path):
    """Few samples under the names and in the shapes of the real files."""
    rng = np.random.default_rng(0)
    n, events = 300, 12
    y = np.sort(rng.integers(0, events, n) // rng.integers(1, 4, n)).astype(np.int16)
    lines = rng.integers(40, 90, (events, 128)).astype(np.uint8)[y]
    lines[::3, :4] = rng.integers(40, 90, (100, 4))
    system = (np.arange(n) % 3).astype(np.int8)
    np.savez(
        tmp_path / "loghub.npz",
        x_train=lines,
        y_train=y,
        system_train=system,
        x_test=lines[:80],
        y_test=y[:80],
    )
    track = np.repeat(np.arange(20), 5).astype(np.int32)
    signs = rng.integers(0, 255, (20, 32, 32, 3)).astype(np.uint8)[track]
    kinds = (track % 4).astype(np.int16)
    np.savez(
        tmp_path / "gtsrb10.npz",
        x_train=signs,
        y_train=kinds,
        group_train=track,
        x_test=signs[::5],
        y_test=kinds[::5],
    )
    speaker = np.repeat(np.arange(6), 20).astype(np.int8)
    digit = np.tile(np.arange(10), 12).astype(np.int16)
    sound = rng.normal(size=(120, 32, 64)).astype(np.float16)
    group = (10 * speaker + digit).astype(np.int32)
    known = np.isin(speaker, [2, 4])
    parts = {"x": sound, "y": digit, "group": group, "speaker": speaker}
    saved = {f"{key}_train": value[~known] for key, value in parts.items()}
    np.savez(tmp_path / "fsdd.npz", **saved, **{f"{key}_test": value[known] for key, value in parts.items()})
    return tmp_path


def test_every_arm_is_run_once_and_told_in_one_table(folder, monkeypatch):
    out = folder / "out"
    flags = ["grid", "--set", "logs", "--folder", str(folder), "--tiny", "--epochs", "2", "--out", str(out)]
    studies.main([*flags, "--seeds", "0", "1"])
    runs = grid.read(out / "logs.jsonl")
    assert [run["arm"] for run in runs[: len(arms.ARMS)]] == list(arms.ARMS)
    assert len(runs) == 2 * len(arms.ARMS)
    table = (out / "logs.md").read_text()
    assert table == grid.render(runs)
    assert "`logs`: " in (out / "overview.md").read_text()
    assert all(f"| `{arm}` | 2 |" in table for arm in arms.ARMS)
    assert "`copies` minus it, mean recall" in table
    budget = {run["arm"]: run["compute"] for run in runs}
    for arm in arms.ARMS:
        if arm != "full" and not arm.endswith("-epochs"):
            assert budget[arm] == pytest.approx(arms.BUDGET, abs=0.06), arm
    assert budget["full"] == 1
    assert {"commit", "torch"} <= runs[0]["versions"].keys()
    monkeypatch.setattr(grid, "train_one", lambda *a: pytest.fail("done before"))
    studies.main([*flags, "--seeds", "0", "1"])
    assert (out / "logs.md").read_text() == table


def test_a_run_begins_only_while_there_is_time(folder, capsys):
    out = folder / "out"
    flags = ["grid", "--set", "signs", "--folder", str(folder), "--tiny", "--epochs", "1", "--out", str(out)]
    studies.main([*flags, "--arms", "full", "--seeds", "0", "1", "--minutes", "-1"])
    assert "no time is left after 0 of 2 runs" in capsys.readouterr().out


def test_what_a_set_has_no_use_for_is_told_and_left_out(folder, capsys):
    out = folder / "out"
    flags = ["grid", "--set", "digits", "--folder", str(folder), "--tiny", "--epochs", "1", "--out", str(out)]
    studies.main([*flags, "--arms", "removed-exact", "short", "--seeds", "0"])
    assert "needs equal samples" in capsys.readouterr().out
    assert [run["arm"] for run in grid.read(out / "digits.jsonl")] == ["short"]


def test_each_seed_draws_data_of_its_own_and_the_same_again(folder):
    first, again, other = (sets.make("signs", folder, seed, tiny=True) for seed in (0, 0, 1))
    assert torch.equal(first.groups, again.groups)
    assert not torch.equal(first.groups, other.groups)
    out = [sets.make("digits", folder, seed) for seed in range(5)]
    assert all(len(task.y_test) == 40 and len(task.y) == 80 for task in out)
    assert len({tuple(task.groups.unique().tolist()) for task in out}) == 5
    logs = sets.make("logs", folder, 0)
    assert torch.isin(logs.y_test, logs.y).all()
    clips = sets.make("tail", folder, 0, images="digits", tiny=True)
    assert clips.sizes.max() > 10
    assert (clips.sizes == 1).sum() == 50
    assert clips.augment(clips.x[:4]).shape == (4, 1, 8, 8)


def test_source_code_is_predicted_and_judged_by_bytes(tmp_path, capsys):
    flags = ["grid", "--set", "code", "--tiny", "--epochs", "1", "--out", str(tmp_path), "--seeds", "0"]
    studies.main([*flags, "--arms", "paper", "infobatch", "copies", "hybrid", "removed-exact"])
    assert "code has no use for paper" in capsys.readouterr().out
    runs = grid.read(tmp_path / "code.jsonl")
    assert [run["arm"] for run in runs] == ["infobatch", "copies", "hybrid", "removed-exact"]
    assert all(0 < run["nats"] < 5 for run in runs)
    assert runs[0]["settings"]["transformers"] == source_code.version()
    table = (tmp_path / "code.md").read_text()
    assert "nats per byte, new samples" in table
    assert "samples loaded" in table


def test_a_byte_is_predicted_from_those_before_it():
    task = sets.make("code", Path(), 0, tiny=True)
    assert torch.equal(task.x[:, 1:].long(), task.y[:, :-1])
    assert len(task.groups.unique()) < len(task.y)
    there = (task.x_test[:, None] == task.x).all(2).any(1)
    assert torch.equal(there, there | ~task.is_new)
    assert 0 < task.is_new.float().mean() < 1
    model, x = task.model(), task.prepare(task.x[:2])
    changed = x.clone()
    changed[:, 60:] = 7
    before, after = model(x), model(changed)
    assert before.shape == (2, 128, 127)
    torch.testing.assert_close(before[..., :60], after[..., :60])
    assert not torch.equal(before[..., 60:], after[..., 60:])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"must hold gtsrb10\.npz"):
        sets.make("signs", tmp_path, 0)


def test_what_is_left_after_removal(folder):
    task = sets.make("signs", folder, 0, tiny=True)
    for kind in ("removed-true", "removed-exact-epochs"):  # frames of a track are equal here
        left = arms.left_after_removal(kind, task, 0)
        assert len(left) == len(task.groups.unique()) == 12
        assert len(task.groups[left].unique()) == 12
    assert len(arms.left_after_removal("removed-at-random", task, 0)) == 12
    assert len(arms.left_after_removal("uniform", task, 0)) == len(task.y)


def test_the_oracle_keeps_what_is_alone_and_the_sampler_loads_it(folder):
    task = sets.make("tail", folder, 0, images="digits", tiny=True)
    recipe = sets.Recipe(20, 25, 0.1, "accuracy", "")
    shares = {}
    for arm in ("oracle", "sampler", "uniform"):
        run = arms.Run(arm, task, recipe, task.model(), 0)
        index = torch.cat([index for _, _, index in run.batches()])
        shares[arm] = float((task.sizes[index] == 1).float().mean())
    alone = float((task.sizes == 1).float().mean())
    assert shares["uniform"] == pytest.approx(alone, abs=0.06)
    assert shares["oracle"] > alone + 0.1
    assert shares["sampler"] > alone + 0.2


def test_full_batches_hold_as_many_samples_as_pruned_ones(folder):
    task = sets.make("signs", folder, 0, tiny=True)
    recipe = sets.Recipe(10, 12, 0.1, "accuracy", "")
    taken = {}
    for arm in ("copies", "copies-fill"):
        run = arms.Run(arm, task, recipe, task.model(), 0)
        lengths = [len(y) for _, y, _ in run.batches()]
        taken[arm] = sum(lengths)
        assert len(lengths) == run.sizes.steps
        assert set(lengths) == ({12} if arm == "copies-fill" else {6, 12})
    assert taken["copies"] - 12 < taken["copies-fill"] <= taken["copies"]


def test_judging_counts_classes_and_the_rarest():
    class Told(torch.nn.Module):
        def forward(self, x):
            return x

    y = torch.tensor([0] * 10 + [1] * 4 + [2] * 2 + [3] * 6 + [4] * 8)
    y_test = torch.tensor([0, 0, 1, 2, 2, 3, 4])
    said = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 2, 0, 3, 4]), 5).float()
    task = sets.Task(y, y, y, said, y_test, 5, lambda x: x, lambda x: x, Told, "")
    assert grid.judge(Told(), task) == pytest.approx({"accuracy": 5 / 7, "mean_recall": 0.8, "rarest_fifth": 0.5})


def test_p_values_are_those_of_scipy_and_of_holm():
    from scipy.stats import ttest_rel

    own, other = {0: 3.0, 1: 4.0, 2: 6.0, 9: 1.0}, {0: 2.0, 1: 3.5, 2: 3.0, 5: 0.0}
    mean, half, p = verdicts.paired(own, other)
    asked = ttest_rel([3.0, 4.0, 6.0], [2.0, 3.5, 3.0])
    low, high = asked.confidence_interval(0.95)
    assert (mean, p, mean - half, mean + half) == pytest.approx((1.5, asked.pvalue, low, high))
    assert verdicts.paired({0: 1.0}, {0: 2.0}) is None
    assert verdicts.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert verdicts.holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_stream_is_met_once_by_every_arm(folder):
    out = folder / "out"
    flags = ["stream", "--folder", str(folder), "--tiny", "--seeds", "0", "1", "--out", str(out)]
    studies.main([*flags, "--sets", "signs"])
    runs = grid.read(out / "stream.jsonl")
    assert len(runs) == 2 * 2 * len(stream.ARMS)
    table = (out / "stream.md").read_text()
    assert table == stream.render(runs)
    assert table.count("| `filter` |") == 2
    compute = {run["arm"]: run["compute"] for run in runs}
    assert compute["full"] == 1
    assert compute["uniform"] == compute["copies-256"] == 0.5


def test_a_stream_keeps_the_order_of_what_it_is_made_of(folder):
    logs = stream.stream("logs", folder, 0)
    data = np.load(folder / "loghub.npz")
    first = [int(data["y_train"][data["system_train"] == s][0]) for s in range(3)]
    assert sorted(logs.y[:3].tolist()) == sorted(first)
    signs = stream.stream("signs", folder, 0, tiny=True)
    assert (signs.groups.view(-1, 5) == signs.groups[::5, None]).all()
    assert not torch.equal(signs.groups[::5], signs.groups[::5].sort().values)


def test_a_filter_drops_what_the_memory_holds(folder):
    task = stream.stream("signs", folder, 0)
    trained = torch.cat([index for _, index in stream.kept("filter", task, torch.arange(len(task.y)), 0)])
    assert len(trained) < 0.6 * len(task.y)
    assert len(task.groups[trained].unique()) > 0.7 * len(task.groups.unique())
