"""``pfb train --dry-run``."""

import pytest

from pfb.lab.errors import RunError
from pfb.lab.train.loop import dry_run, train
from pfb.lab.train.options.config import TrainConfig

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

SMALL = {"epochs": 2, "train_samples": 256, "batch_size": 64, "cpu": True, "n_centers": 16}


def config(run, **changes):
    return TrainConfig(**{**SMALL, "out": run, **changes})


def test_it_writes_nothing(tmp_path, capsys, method):
    dry_run(config(tmp_path / "run", method=method))
    assert not (tmp_path / "run").exists()
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 steps in each of 2 epochs" in shown
    assert "A full step, one on 39 of 64 samples and an evaluation went well" in shown


def test_it_refuses_what_the_run_would(tmp_path):
    with pytest.raises(RunError, match="layer9"):
        dry_run(config(tmp_path / "run", method="paper", cut="layer9"))
    train(config(tmp_path / "run", epochs=1))
    with pytest.raises(RunError, match="not empty"):
        dry_run(config(tmp_path / "run"))


def test_it_tells_of_no_setting_that_nobody_gave(tmp_path, capsys):
    dry_run(TrainConfig(method="full", epochs=2, train_samples=256, batch_size=64, cpu=True, out=tmp_path / "run"))
    assert "without effect" not in capsys.readouterr().out
