"""Data of known redundancy, what each kind of sight makes of them, and whether it pays; small."""

import dataclasses
import itertools
import json
from typing import Any

import pytest
import torch

from pfb.lab.errors import RunError
from studies import __main__ as studies
from studies import copies as look
from studies.arms import batches
from studies.redundancy import Clips

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]
SMALL = Clips("digits", clips=20, frames=10, singles=100)
FLAGS = ["--clips.data", "digits", "--clips.clips", "20", "--clips.frames", "10", "--clips.singles", "100"]
FLAGS += ["--device", "cpu"]


def train_set(clips: Clips) -> Any:
    return clips.source()[0].train


def test_frames_of_a_clip_are_near_equal_and_of_one_class():
    copies, data = SMALL.source()[1], train_set(SMALL)
    images, labels = data.images.float(), data.labels
    assert copies.tolist() == [10] * 200 + [1] * 100
    clips = images[:200].view(20, 10, -1)
    within, between = (clips[:, 0] - clips[:, 1]).norm(dim=1), (clips[:-1, 0] - clips[1:, 1]).norm(dim=1)
    assert within.mean() < between.mean()
    assert (labels[:200].view(20, 10) == labels[:200:10, None]).all()
    assert torch.equal(train_set(SMALL).images.float(), images)
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(images[:10]))


def test_distinct_images_are_as_many_and_too_many_are_refused():
    copies, data = SMALL.distinct.source()[1], train_set(SMALL.distinct)
    assert len(data) == len(copies) == 300
    assert set(copies.tolist()) == {1}
    assert len(data.images.flatten(1).unique(dim=0)) == 300
    with pytest.raises(RunError, match="--clips and --singles ask for 4200"):
        Clips("digits").source()


def test_long_and_short_clips_share_the_frames_by_a_power_law():
    lengths = dataclasses.replace(SMALL, tail=1.0).source()[1][:-100].unique(return_counts=True)
    clips = (lengths[1] / lengths[0]).tolist()
    assert sum(clips) == 20
    assert lengths[0].max() == 56  # 200 / (1 + 1/2 + ... + 1/20)
    assert lengths[0].min() == 3


def test_faults_strike_the_share_asked_for():
    clean, noisy = train_set(SMALL), train_set(dataclasses.replace(SMALL, outliers=0.3))
    changed = (clean.images != noisy.images).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.4
    wrong = clean.labels != train_set(dataclasses.replace(SMALL, mislabelled=0.3)).labels
    assert 0.17 < wrong.float().mean() < 0.37
    counts = train_set(dataclasses.replace(SMALL, imbalance=0.1)).labels.bincount()
    assert counts[0] > 3 * counts[9]
    with pytest.raises(RunError, match="--clips.imbalance in"):
        Clips(imbalance=0.0)


def test_data_that_fail_are_trained_on_too(tmp_path):
    flags = ["--seeds", "0", "--epochs", "1", "--batch-size", "30", "--memory", "64", "--prunes", "0.5"]
    flags += ["--arms", "uniform", "fewer-views", "full", "--on-data", "tail", "repeated", "outliers", "mislabelled"]
    studies.main(["clips", *FLAGS, *flags, "imbalanced", "--out", str(tmp_path / "clips.json")])
    runs = json.loads((tmp_path / "clips.json").read_text())["runs"]
    assert len({run["data"] for run in runs}) == 5
    assert {(run["arm"], run["prune"]) for run in runs} == {("uniform", 0.5), ("fewer-views", 0.5), ("full", 0.0)}


def test_originals_show_what_strong_augmentation_hides(tmp_path):
    flags = ["--seeds", "0", "--epochs", "2", "--batch-size", "30", "--memory", "256", "--prunes", "0.5"]
    flags += ["--arms", "uniform", "inverse-density", "originals", "--on-data", "strong"]
    studies.main(["clips", *FLAGS, *flags, "--out", str(tmp_path / "clips.json")])
    runs = {run["arm"]: run for run in json.loads((tmp_path / "clips.json").read_text())["runs"]}
    kept = {arm: run["singles_kept"] - run["frames_kept"] for arm, run in runs.items()}
    assert kept["originals"] > kept["inverse-density"] + 0.1 > kept["uniform"]
    assert runs["originals"]["compute"] == runs["uniform"]["compute"]


def test_repeated_augmentation_has_each_image_twice_in_a_batch():
    batch = next(batches(10, 7, views=2))
    assert batch.view(-1, 2)[:, 0].tolist() == batch.view(-1, 2)[:, 1].tolist()
    assert len(batch.unique()) == 3


def test_what_can_be_seen(tmp_path):
    flags = ["--features", "cut", "sketch", "--memories", "64", "--centers", "8"]
    flags += ["--epochs", "2", "--batch-size", "30", "--queries", "60"]
    studies.main(["sight", *FLAGS, *flags, "--out", str(tmp_path / "sight.json")])
    rows = json.loads((tmp_path / "sight.json").read_text())["rows"]
    assert [(row["features"], row["density"], row["size"]) for row in rows] == [
        *(("cut", "centers", 8), ("cut", "memory", 64)),
        *(("sketch", "centers", 8), ("sketch", "memory", 64)),
    ]
    assert all(len(row["auc"]) == 2 and all(0 <= auc <= 1 for auc in row["auc"]) for row in rows)
    assert rows[-1]["auc"][-1] > 0.6
    assert (tmp_path / "sight.png").exists()


def test_how_well_copies_are_seen_and_what_rules_keep_of_them(tmp_path):
    flags = ["--lengths", "5", "--noises", "60", "--memories", "40", "--batch-sizes", "10", "--memory", "100"]
    place = tmp_path / "copies.json"
    studies.main(["copies", *FLAGS, *flags, "--queries", "60", "--batch-size", "20", "--out", str(place)])
    numbers = json.loads(place.read_text())
    usual, plain, *strong, few, noisy, small, batch = numbers["sight"]
    assert len(strong) == 3
    assert all(row["auc"] < plain["auc"] for row in strong)
    assert usual["case"].startswith("clips of 10 frames, memory of 100, batches of 20")
    assert plain["auc"] > 0.8 > 0.6 > noisy["auc"]
    assert plain["frames"] < noisy["frames"]
    assert [row["case"] for row in (few, small, batch)] == ["... clips of 5", "... memory of 40", "... batches of 10"]
    rules = {rule["rule"]: rule for rule in numbers["rules"]}
    own, distance = (rules[name] for name in (look.DEFAULT, "distance as it is, to the power of 4"))
    assert own["singles"] > own["frames"] + 0.05
    assert own["spread"] < distance["spread"]
    assert own["equal"] > distance["equal"]
    assert 0 < distance["effective"] < own["effective"] < 1


def test_whether_it_pays_and_no_run_is_done_twice(tmp_path, monkeypatch):
    def main(*arms):
        flags = ["--seeds", "0", "--epochs", "1", "--batch-size", "30", "--memory", "64", "--prunes", "0.5"]
        place = ["--out", str(tmp_path / "clips.json")]
        studies.main(["clips", *FLAGS, *flags, "--on-data", "clips", "--arms", *arms, *place])
        return {run["arm"]: run for run in json.loads((tmp_path / "clips.json").read_text())["runs"]}

    first = main("full", "short", "small-batch", "oracle")
    assert first["full"]["compute"] == 1
    assert first["short"]["compute"] == first["oracle"]["compute"] == pytest.approx(1 - 0.5 * 0.825)
    assert first["oracle"]["frames_kept"] < 0.5 < first["oracle"]["singles_kept"]
    assert first["full"]["frames_kept"] is None
    monkeypatch.setattr("studies.arms.pfb.attach", lambda *a, **k: pytest.fail("done before"))
    assert main("oracle") == first
    monkeypatch.undo()
    rules = main("uniform", "paper-reuse", "paper-recompute", "inverse-density", "weighted")
    assert rules["paper-reuse"]["compute"] > rules["paper-recompute"]["compute"] > rules["uniform"]["compute"]
    table = (tmp_path / "clips.md").read_text()
    assert all(f"| clips | {'0%' if arm == 'full' else '50%'} | {arm} |" in table for arm in rules)
    assert (tmp_path / "clips.png").exists()
