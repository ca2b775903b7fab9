"""Trainings judged by group, tiny: every arm on every set, and what becomes of the claims."""

import pytest
import torch

from studies import __main__ as studies
from studies import grid, starved

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # tiny data are all alike, which the library tells
]


def test_every_arm_is_judged_by_group_once(tmp_path, monkeypatch):
    flags = ["starved", "--images", "digits", "--tiny", "--seeds", "0", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(starved, "RECIPE", starved.sets.Recipe(2, 32, 0.1, "accuracy", ""))
    studies.main(flags)
    runs = grid.read(tmp_path / "starved.jsonl")
    assert len(runs) == len(starved.SETS) * len(starved.ARMS) * 2
    for run in runs:
        grouped = run["set"] in ("night", "sky")
        assert 0 <= run["rest"] <= 1
        assert (run["group"] is not None) == (run["trained_group"] is not None) == grouped
        assert (run["trained_copies"] is not None) == (run["set"] in ("night", "clips"))
        if run["arm"] != "full":
            assert run["compute"] == pytest.approx(0.59, abs=0.08)
    table = (tmp_path / "starved.md").read_text()
    assert table == starved.render(runs)
    assert table.count(": **") == len(starved.CLAIMS) + 2
    assert all(f"| {name}, `{arm}` | 2 |" in table for name in starved.SETS for arm in starved.ARMS)
    monkeypatch.setattr(starved, "train_one", lambda *a: pytest.fail("done before"))
    studies.main(flags)


def test_night_is_a_minority_of_single_pictures_and_the_test_holds_each_picture_twice():
    made = starved.make("night", "digits", 0, tiny=True)
    task = made.task
    assert int(made.train.sum()) == round(0.05 * len(task.y))
    assert (task.sizes[made.train] == 1).all()
    assert int(task.x[made.train].max()) <= 26 < int(task.x[~made.train].max())
    day, night = task.x_test[~made.test], task.x_test[made.test]
    assert torch.equal(night, starved.by_night(day))
    assert torch.equal(task.y_test[made.test], task.y_test[~made.test])


def test_skies_are_classes_of_their_own_and_no_copies():
    made = starved.make("sky", "digits", 0, tiny=True)
    task = made.task
    assert (task.sizes == 1).all()
    assert float(made.train.float().mean()) == pytest.approx(0.3, abs=0.01)
    assert set(task.y[made.train].tolist()) == set(task.y_test[made.test].tolist()) == {10, 11, 12, 13}
    assert task.model()(task.prepare(task.x[:2])).shape == (2, 14)
    again, other = (starved.make("sky", "digits", seed, tiny=True).task for seed in (0, 1))
    assert torch.equal(again.x, task.x)
    assert not torch.equal(other.x, task.x)


def test_the_old_rule_differs_from_the_default_in_own_views_alone():
    task = starved.make("distinct", "digits", 0, tiny=True).task
    ways = [starved.Way(arm, task, task.model(), 0) for arm in (starved.OWN, starved.OLD)]
    new, old = (way.pruner for way in ways)
    assert isinstance(old.rule, starved.WithoutOwnViews)
    assert new._rule.takes - old._rule.takes == {"own"}
    assert (old.share_after(100), old.total_steps, old.density.epoch) == (
        new.share_after(100),
        new.total_steps,
        new.density.epoch,
    )


def run_of(arm, seed, **found):
    told = {"group": None, "trained_group": None, "trained_rest": 1.0, "trained_copies": None, "compute": 1.0}
    return {"set": "clips", "arm": arm, "seed": seed, **told, **found}


@pytest.mark.parametrize(("gain", "verdict"), [(0.05, "holds"), (0.0, "fails"), (-0.05, "fails")])
def test_a_claim_of_a_gain_holds_where_the_interval_is_above_zero(gain, verdict):
    runs = [run_of("uniform", seed, rest=0.4 + 0.01 * seed) for seed in range(5)]
    runs += [run_of("copies", seed, rest=0.4 + 0.01 * seed + 0.003 * (seed % 2) + gain) for seed in range(5)]
    table = starved.render(runs)
    assert f"is above `uniform`: {100 * gain + 0.12:+.2f}" in table
    assert f"**{verdict}**" in table


@pytest.mark.parametrize(
    ("told", "holds"), [((-1.0, 1.2, 0.1), True), ((-1.0, 0.8, 0.01), False), ((-1.6, 3, 0.2), False)]
)
def test_a_claim_of_no_loss(told, holds):
    assert starved.Claim("sky", "uniform", "group").holds(told, told[2]) is holds
