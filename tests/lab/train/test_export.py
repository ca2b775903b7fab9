"""Weights that anyone can load: the best ones, the last ones, and their average."""

import csv
from typing import Any

import pytest
import torch

from pfb.lab.train import loop
from pfb.lab.train.data import load
from pfb.lab.train.loop import Training, train
from pfb.lab.train.nets.models import build
from pfb.lab.train.output import checkpoint
from pfb.lab.train.output.folder import RunFolder
from tests.lab.train.runs import config, image_folder, weights

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


def exported(run, name):
    return torch.load(run / name, weights_only=True)


@pytest.fixture
def accuracies(monkeypatch):
    """Test accuracies to come, in place of those that are reached."""
    coming = []
    evaluate = loop.Training.evaluate

    def replaced(self, model, loader, name):
        found = evaluate(self, model, loader, name)
        return found | ({"test_accuracy": coming.pop(0)} if name == "test" and coming else {})

    monkeypatch.setattr(loop.Training, "evaluate", replaced)
    return coming


def test_the_weights_fit_a_model_that_nobody_attached_to(tmp_path):
    run = tmp_path / "run"
    train(config(run, epochs=1, ema=0.5, track="none"))
    model = build("cifar-resnet8", 10, 1, 8)
    for name in ("weights.pt", "best.pt", "ema.pt"):
        model.load_state_dict(exported(run, name))
    last, average = exported(run, "weights.pt"), exported(run, "ema.pt")
    assert all(torch.equal(last[name], value) for name, value in weights(run).items())
    assert not torch.equal(last["fc.weight"], average["fc.weight"])


def test_the_best_are_those_of_the_best_epoch_over_an_interruption(tmp_path, accuracies, monkeypatch):
    run = tmp_path / "run"
    accuracies.extend([0.3, 0.9, 0.5])
    after, save = {}, checkpoint.save

    def noting(accelerator, place, epoch, model, *rest):
        after[epoch] = model.state_dict()["fc.weight"].clone()
        done = save(accelerator, place, epoch, model, *rest)
        if epoch == 2 and len(after) == 2:
            after[None] = None
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(checkpoint, "save", noting)
    with pytest.raises(KeyboardInterrupt):
        train(config(run, epochs=3, track="none"))
    assert torch.equal(exported(run, "best.pt")["fc.weight"], after[2])
    summary = train(RunFolder(run).config(), resume=True)
    assert torch.equal(exported(run, "best.pt")["fc.weight"], after[2])
    assert torch.equal(exported(run, "weights.pt")["fc.weight"], after[3])
    assert (summary["best_epoch"], summary["best_test_accuracy"], summary["test_accuracy"]) == (2, 0.9, 0.5)


def test_a_new_run_leaves_nothing_of_the_old_one(tmp_path):
    run = tmp_path / "run"
    train(config(run, epochs=1, ema=0.5, track="none"))
    training = Training(config(run, epochs=2, overwrite=True, eval_every=2, track="none"))
    training.folder.begin(training.config)
    assert {p.name for p in run.iterdir()} == {"config.json", ".lock"}


@pytest.mark.parametrize("side", [8, 80], ids=["in memory", "on disk"])
def test_samples_of_a_folder_have_their_file_beside_them(tmp_path, side):
    root = image_folder(tmp_path / "data", side=side)
    source: Any = load(config(tmp_path, data=f"imagefolder:{root}", train_samples=4))
    training_files = {p.relative_to(root).as_posix() for p in (root / "train").rglob("*.png")}
    assert len(source.names) == 4
    assert set(source.names) <= training_files
    for name, label in zip(source.names, source.train.labels.tolist(), strict=True):
        assert name.split("/")[1] == source.classes[label]


def test_the_table_of_samples_names_files(tmp_path):
    root = image_folder(tmp_path / "data")
    run = tmp_path / "run"
    train(config(run, data=f"imagefolder:{root}", epochs=1, train_samples=None, batch_size=4, track="none"))
    rows = list(csv.DictReader((run / "samples.csv").open()))
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows)
    assert all((root / row["file"]).exists() for row in rows)
