"""Metrics go where --track says."""

import importlib.util
import json
import sys
from types import ModuleType
from typing import Any

import pytest
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pfb.lab.errors import RunError
from pfb.lab.train.loop import train
from pfb.lab.train.output.folder import RunFolder
from tests.lab.train.runs import config

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


def test_tensorboard_shows_the_metrics_of_epochs_and_steps(tmp_path):
    train(config(tmp_path / "run", epochs=1, log_every=2))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    epoch = RunFolder(tmp_path / "run").epochs()[0]
    shown = events.Scalars("epoch/test_top5_accuracy")
    assert [(point.step, point.value) for point in shown] == [(6, pytest.approx(epoch["test_top5_accuracy"]))]
    assert [point.step for point in events.Scalars("step/loss")] == [2, 4, 6]


def test_nothing_but_the_log(tmp_path):
    train(config(tmp_path / "run", epochs=1, track="none"))
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert len(RunFolder(tmp_path / "run").epochs()) == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *rest: None if n == name else find(n, *rest))
    with pytest.raises(RunError, match=f"--track {name} needs a package that is not installed: pip install {name}"):
        train(config(tmp_path / "run", track=name))
    assert not (tmp_path / "run").exists()


class TestWandb:
    @pytest.fixture
    def service(self, monkeypatch):
        """What stands in for the package: it notes what it is told."""

        class Run:
            def __init__(self):
                self.points, self.settings = [], {}

            def log(self, values, step=None, **_):
                self.points.append((step, values))

            def finish(self):
                self.points.append("finished")

        module: Any = ModuleType("wandb")
        module.run = Run()
        module.config = module.run.settings
        module.begun = []
        module.init = lambda **options: (module.begun.append(options), module.run)[1]
        module.__spec__ = importlib.util.spec_from_loader("wandb", None)
        monkeypatch.setitem(sys.modules, "wandb", module)
        monkeypatch.setattr("accelerate.tracking.is_wandb_available", lambda: True)
        monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.WANDB])
        return module

    def test_a_run_has_the_folders_name_and_all_settings(self, tmp_path, service):
        train(config(tmp_path / "my run", epochs=1, track="wandb"))
        assert service.begun == [{"project": "pfb", "name": "my run", "dir": str(tmp_path / "my run")}]
        assert service.config.items() >= json.loads((tmp_path / "my run" / "config.json").read_text()).items()
        (step, values), end = service.run.points
        assert step == 6, "one epoch, no line of steps"
        assert "epoch/test_accuracy" in values
        assert end == "finished"

    def test_a_service_that_refuses(self, tmp_path, service):
        def refuse(**_):
            raise RuntimeError("api_key not configured\nuse login")

        service.init = refuse
        with pytest.raises(RunError, match=r"--track wandb could not start .api_key not configured.; see to it"):
            train(config(tmp_path / "run", track="wandb"))
