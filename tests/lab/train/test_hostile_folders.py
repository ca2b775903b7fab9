"""A run's folder of a stranger, and what the system does to a run: one line and the way on."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pfb.lab import cli
from pfb.lab.errors import RunError
from pfb.lab.train import early
from pfb.lab.train.loop import train
from pfb.lab.train.output.extension import extended
from pfb.lab.train.output.folder import RunFolder
from tests.lab.train.runs import begun, config, content, file_size_limit, image_folder, interrupt_evaluation

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


@pytest.fixture
def folder(run):
    """Of a run that has begun, with a line in its log."""
    return begun(run, {"step": 6, "epoch": 1, "train_loss": 2.0})


class TestOfAStranger:
    """A run's folder that came in an archive, or lies on a disk that others write to."""

    @pytest.fixture
    def precious(self, tmp_path):
        place = tmp_path / "bashrc"
        place.write_text("precious")
        return place

    WRITTEN = ("config.json", "metrics.jsonl", "summary.json", "records.pt", "samples.csv", "best.pt", "weights.pt")

    @pytest.mark.parametrize("resume", [True, False], ids=["resume", "overwrite"])
    def test_nothing_is_written_through_its_links(self, run, precious, resume, monkeypatch):
        interrupt_evaluation(monkeypatch, at=2)
        with pytest.raises(KeyboardInterrupt):
            train(config(run))
        monkeypatch.undo()
        drafts = [run / f"{name}.draft" for name in (*self.WRITTEN, "checkpoint_0002")]
        others = [run / name for name in ("summary.json", "best.pt", "control.json") if not resume]
        for link in (*drafts, *others):
            link.unlink(missing_ok=True)
            link.symlink_to(precious)
        train(RunFolder(run).config() if resume else config(run, overwrite=True), resume=resume)
        assert precious.read_text() == "precious"
        assert not [name for name in self.WRITTEN if (run / name).is_symlink()]
        assert RunFolder(run).summary()["samples"] == 2 * 192

    @pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
    def test_nor_are_lines_added_through_them(self, folder, precious, name):
        (folder.path / name).unlink()
        (folder.path / name).symlink_to(precious)
        refused = pytest.raises(OSError, match=f"it is a link, which is not written through; remove it: .*{name}")
        with refused, folder.locked():
            folder.log({"epoch": 1})
        assert precious.read_text() == "precious"

    def test_the_folder_of_tensorboard_is_none_elsewhere(self, run, tmp_path, monkeypatch):
        interrupt_evaluation(monkeypatch, at=2)
        with pytest.raises(KeyboardInterrupt):
            train(config(run, track="tensorboard"))
        monkeypatch.undo()
        (run / "tensorboard").rename(tmp_path / "elsewhere")
        (run / "tensorboard").symlink_to(tmp_path / "elsewhere")
        before = content(tmp_path / "elsewhere")
        with pytest.raises(RunError, match=r"it is a link, .*tensorboard.*continue with: pfb train --resume"):
            train(RunFolder(run).config(), resume=True)
        train(config(run, overwrite=True, epochs=1))  # removes links as links
        assert content(tmp_path / "elsewhere") == before

    def test_nor_one_that_may_not_be_written(self, run, monkeypatch, capsys):
        access = os.access
        monkeypatch.setattr(os, "access", lambda place, mode: place.name != "tensorboard" and access(place, mode))
        with pytest.raises(RunError, match=r"Permission denied: '.*tensorboard'\. No epoch was finished"):
            train(config(run, track="tensorboard"))
        assert "Traceback" not in capsys.readouterr().err

    def test_a_checkpoint_that_is_a_link_is_removed_as_one(self, folder, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "a").touch()
        (folder.path / "checkpoint_0001").symlink_to(tmp_path / "elsewhere")
        with folder.locked():
            folder.begin(config(folder.path, overwrite=True))
        assert not folder.checkpoints()
        assert (tmp_path / "elsewhere" / "a").exists()

    @pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json", "records.pt"])
    def test_pipes_are_not_waited_for(self, folder, name):
        (folder.path / name).unlink(missing_ok=True)
        os.mkfifo(folder.path / name)
        read = {"config.json": folder.config, "metrics.jsonl": folder.epochs, "summary.json": folder.summary}
        with pytest.raises(RunError, match=f"{name} is damaged or cannot be read .*it is no regular file"):
            read.get(name, folder.records)()

    @pytest.mark.parametrize(
        "changes",
        [
            {"full_samples": 0},
            {"train_seconds": "long"},
            {"test_accuracy": None},
            {"time_saved": []},
            {"step_ratio": {"median": "x"}},
            {"device": 5},
            {"config": 5},
            {"config": {"out": "x", "epochs": "7"}},
        ],
    )
    def test_a_summary_of_other_kinds(self, folder, changes):
        summary = {"config": json.loads(config(folder.path).to_json()), "processes": 1}
        (folder.path / "summary.json").write_text(json.dumps({**summary, **changes}))
        with pytest.raises(RunError, match="summary.json is damaged or cannot be read"):
            folder.summary()

    def test_what_a_summary_lacks_is_named(self, folder, capsys):
        summary = {"config": json.loads(config(folder.path).to_json()), "processes": 1}
        (folder.path / "summary.json").write_text(json.dumps(summary))
        with pytest.raises(SystemExit) as stopped:
            cli.main(["train", "--resume", str(folder.path)])
        assert stopped.value.code == 1
        assert (
            "summary.json lacks 'test_accuracy': it is damaged, or another version wrote it" in capsys.readouterr().err
        )

    def test_a_log_lacks_something(self, folder):
        with pytest.raises(RunError, match="metrics.jsonl lacks 'pruned_share'"):
            folder.epochs()[0]["pruned_share"]

    @pytest.mark.parametrize("line", ['{"epoch": "7"}', '{"epoch": 1, "train_loss": "x"}', "[" * 100_000])
    def test_a_log_of_other_kinds(self, folder, line):
        (folder.path / "metrics.jsonl").write_text(line + "\n")
        with pytest.raises(RunError, match="metrics.jsonl is damaged .*line 1 is"):
            folder.epochs()

    def test_records_of_texts(self, folder):
        torch.save({"seen": "a", "kept": "b", "log_density": "c"}, folder.path / "records.pt")
        with pytest.raises(RunError, match="do not hold a number for each sample"):
            folder.records()


class TestWhatTheSystemDoes:
    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "a loader's process was killed, mostly"),
            (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried"), "memory is short"),
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "memory is short"),
            (MemoryError(), "memory is short"),
        ],
    )
    def test_it_is_one_line_with_the_way_on(self, folder, error, said):
        told = pytest.raises(RunError, match=f"^the run in .* stopped: {said}.*start again, with --overwrite$")
        with told, folder.saying_how_to_go_on():
            raise error

    def test_an_error_of_the_code_is_none_of_it(self, folder):
        with pytest.raises(RuntimeError, match="shapes differ"), folder.saying_how_to_go_on():
            raise RuntimeError("shapes differ")

    def test_a_killed_loaders_process(self, run, tmp_path):
        from pfb.lab.train.data.folder import OnDisk

        def killed(self, index):
            os.kill(os.getpid(), 9)

        data = image_folder(tmp_path / "data")
        settings = {"data": f"imagefolder:{data}", "image_size": 65, "train_samples": None, "batch_size": 4}
        begun = RunFolder.begin

        def begin_and_kill(folder, config):
            begun(folder, config)
            OnDisk.__getitem__ = killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OnDisk, "__getitem__", OnDisk.__getitem__)
            patch.setattr(RunFolder, "begin", begin_and_kill)
            with pytest.raises(RunError, match=r"a loader's process was killed, .*start again, with --overwrite"):
                train(config(run, **settings, workers=1, cut="layer1"))
        gc.collect()  # of the loader's processes

    def test_more_epochs_on_a_full_disk_change_nothing(self, run):
        train(config(run, epochs=1))
        before = content(run)
        with file_size_limit(100), pytest.raises(OSError, match="File too large: .*config.json"):
            extended(RunFolder(run).config(), 2)
        assert content(run) == before

    def test_a_kill_between_settings_and_summary_of_more_epochs(self, run, monkeypatch):
        train(config(run, epochs=1))

        unlink = Path.unlink

        def killed(place, **options):
            if place.name == "summary.json":
                raise KeyboardInterrupt
            unlink(place, **options)

        monkeypatch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            extended(RunFolder(run).config(), 2)
        monkeypatch.undo()
        assert (run / "summary.json").exists()
        assert RunFolder(run).summary_of(RunFolder(run).config()) is None
        assert train(RunFolder(run).config(), resume=True)["epoch"] == 2


def test_who_resumes_beside_a_living_process_is_told_at_once(run):
    """Before libraries and data are loaded: those of a killed launcher may live on."""
    folder = RunFolder(run)
    folder.claim(overwrite=False)
    code = f"""
import sys
from pfb.lab import cli
try:
    cli.main(["train", "--resume", {str(run)!r}])
finally:
    print("torch" in sys.modules)
"""
    with folder.locked():
        folder.begin(config(run))
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert f"another process trains in {run} at this moment" in ended.stderr
    assert "of a killed launcher the processes may live on: end them" in ended.stderr
    assert ended.stdout == "False\n"
    early.check_idle(run)
