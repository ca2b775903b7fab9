"""What a checkpoint is taken for, and what it is not."""

import io
import json
import os
import shutil

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from pfb.lab import files
from pfb.lab.errors import RunError
from pfb.lab.train.loop import train
from pfb.lab.train.output import checkpoint
from pfb.lab.train.output.folder import RunFolder
from pfb.lab.train.output.random_states import RandomStates
from tests.lab.train.runs import config, content, interrupt_evaluation

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Two runs that differ in a setting, stopped after their first epoch."""
    from accelerate.state import AcceleratorState

    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for name, changes in (("run", {}), ("other", {"seed": 1})):
            interrupt_evaluation(patch, at=2)
            with pytest.raises(KeyboardInterrupt):
                train(config(root / name, epochs=2, **changes))
            patch.undo()
            AcceleratorState._reset_state(reset_partial_state=True)
    return root


@pytest.fixture
def run(template, tmp_path):
    return shutil.copytree(template / "run", tmp_path / "run")


@pytest.fixture
def place(run):
    return RunFolder(run).checkpoints()[-1]


def resume(run):
    return train(RunFolder(run).config(), resume=True)


def sign(place, **changes):
    """Bring a manifest in line with its files, as someone would who means harm."""
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"] = {name: files.digest(place / name) for name in manifest["files"]}
    (place / "manifest.json").write_text(json.dumps({**manifest, **changes}))


class TestDamage:
    def test_a_damaged_file_is_named(self, run, place):
        file = place / "model.safetensors"
        damaged = bytearray(file.read_bytes())
        damaged[len(damaged) // 2] ^= 0xFF
        file.write_bytes(damaged)
        with pytest.raises(RunError, match=r"model.safetensors is damaged.*Remove"):
            resume(run)

    def test_a_missing_file_is_named(self, run, place):
        (place / "state.pt").unlink()
        with pytest.raises(RunError, match="state.pt is missing"):
            resume(run)

    def test_a_file_that_cannot_be_read_is_named(self, run, place):
        (place / "state.pt").unlink()
        (place / "state.pt").mkdir()
        with pytest.raises(RunError, match="state.pt cannot be read"):
            resume(run)

    @pytest.mark.parametrize(
        "manifest",
        [
            b"{",
            b"5",
            b"\xff",
            b"{}",
            b'{"epoch": 1}',
            b'{"epoch": 1, "files": ["state.pt"]}',
            b'{"epoch": 7, "files": {}}',
        ],
    )
    def test_a_damaged_manifest(self, run, place, manifest):
        (place / "manifest.json").write_bytes(manifest)
        with pytest.raises(RunError, match="manifest.json is missing or damaged"):
            resume(run)

    def test_no_manifest(self, run, place):
        (place / "manifest.json").unlink()
        with pytest.raises(RunError, match="manifest.json is missing or damaged"):
            resume(run)

    def test_a_manifest_that_lists_less(self, run, place):
        sign(place, files={"model.safetensors": files.digest(place / "model.safetensors")})
        with pytest.raises(RunError, match="manifest.json is missing or damaged .'state.pt'"):
            resume(run)


class TestForeign:
    def test_a_checkpoint_of_other_settings(self, template, run, place):
        shutil.rmtree(place)
        shutil.copytree(template / "other" / place.name, place)
        with pytest.raises(RunError, match="belongs to other settings: --seed is 1 there and 0 in this run's config"):
            resume(run)

    def test_settings_that_were_changed_since(self, run):
        with pytest.raises(RunError, match="other settings: --prune is 0.4 there and 0.5"):
            train(config(run, epochs=2, prune=0.5), resume=True)

    def test_another_number_of_processes(self, run, place):
        sign(place, processes=2)
        with pytest.raises(RunError, match="as many processes as wrote it, 2 .got 1.: .*--num_processes 2"):
            resume(run)

    def test_a_checkpoint_that_does_not_say_whose_it_is(self, run, place):
        sign(place, config=None)
        with pytest.raises(RunError, match="does not say of which run"):
            resume(run)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda state: state["parts"].pop("random"),
            lambda state: state["parts"]["random"]["by_process"].clear(),
            lambda state: state["parts"]["random"]["by_process"][0].pop("torch"),
            lambda state: state["parts"]["records"].update(seen=torch.zeros(7)),
            lambda state: state["parts"].update(averaged={}),
            lambda state: state.pop("progress"),
            lambda state: state["progress"].pop("totals"),
            lambda state: state["progress"].update(metrics=5),
            lambda state: state["progress"]["totals"].update(steps="many"),
        ],
        ids=[
            "no random states",
            "of no process",
            "not PyTorch's",
            "other samples",
            "a part too many",
            "no progress",
            "no totals",
            "metrics",
            "texts",
        ],
    )
    def test_a_state_that_does_not_fit(self, run, place, spoil):
        state = torch.load(place / "state.pt", weights_only=True)
        spoil(state)
        torch.save(state, place / "state.pt")
        sign(place)
        with pytest.raises(RunError, match="does not fit this run") as raised:
            resume(run)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        "name", ["state.pt", "model.safetensors", "custom_checkpoint_0.pkl", "random_states_0.pkl"]
    )
    def test_nothing_in_a_checkpoint_is_executed(self, run, place, tmp_path, name):
        class Harm:
            def __reduce__(self):
                return (tmp_path / "harmed").touch, ()

        harmful = io.BytesIO()
        torch.save({"parts": Harm()}, harmful)
        torch.load(io.BytesIO(harmful.getvalue()), weights_only=False)
        (tmp_path / "harmed").unlink()  # so it does harm where it is unpickled

        (place / name).write_bytes(harmful.getvalue())
        sign(place)
        if name in ("state.pt", "model.safetensors"):
            with pytest.raises(RunError, match="does not fit this run"):
                resume(run)
        else:
            resume(run)
        assert not (tmp_path / "harmed").exists()


class TestNames:
    """Only what save() has written is taken for a checkpoint, or removed."""

    OTHERS = ("checkpoint_best", "checkpoint_0002_backup", "checkpoint_3", "checkpoint_0009.draft", "checkpoint_²²²²")

    @pytest.fixture
    def save(self, tmp_path):
        accelerator, model = Accelerator(cpu=True), nn.Linear(2, 2)
        return lambda epoch: checkpoint.save(accelerator, tmp_path, epoch, model, {}, {}, {})

    def test_others_are_left_alone(self, tmp_path, save):
        for name in self.OTHERS:
            (tmp_path / name).mkdir()
        for epoch in (1, 2):
            save(epoch)
        assert {p.name for p in tmp_path.iterdir()} == {*self.OTHERS, "checkpoint_0002"}
        assert [p.name for p in checkpoint.finished(tmp_path)] == ["checkpoint_0002"]

    def test_epoch_10000_comes_after_9999(self, tmp_path, save):
        for epoch in (9998, 10000):
            (tmp_path / f"checkpoint_{epoch}").mkdir()
        assert [p.name for p in checkpoint.finished(tmp_path)] == ["checkpoint_9998", "checkpoint_10000"]
        save(9999)
        save(10001)
        assert [p.name for p in checkpoint.finished(tmp_path)] == ["checkpoint_10001"]

    def test_a_later_one_is_not_removed(self, tmp_path, save):
        """It cannot be of this run, so it is somebody's."""
        (tmp_path / "checkpoint_0007").mkdir()
        save(2)
        assert [p.name for p in checkpoint.finished(tmp_path)] == ["checkpoint_0002", "checkpoint_0007"]

    def test_a_draft_of_an_interrupted_save_is_replaced(self, tmp_path, save):
        (tmp_path / "checkpoint_0001.draft" / "folder").mkdir(parents=True)
        assert content(save(1)).keys() == {"manifest.json", "model.safetensors", "state.pt"}

    def test_an_older_one_that_cannot_be_removed_stops_nobody(self, tmp_path, save, monkeypatch):
        save(1)
        rmdir = os.rmdir

        def forbidden(path, **options):
            if "checkpoint_0001" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return rmdir(path, **options)

        monkeypatch.setattr("os.rmdir", forbidden)
        assert checkpoint.verified(save(2))["epoch"] == 2


def test_random_states_round_trip():
    import random

    import numpy as np

    states = RandomStates(Accelerator(cpu=True))
    draw = lambda: (random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist())  # noqa: E731, NPY002
    np.random.randn()  # noqa: NPY002 - leaves the second of a pair behind
    saved = states.state_dict()
    first = draw()
    assert draw() != first
    states.load_state_dict(saved)
    assert draw() == first
