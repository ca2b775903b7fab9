"""A run's folder: who may take it, who may write to it, and what can be read from it."""

import multiprocessing
import time

import pytest
import torch

from pfb.lab import cli
from pfb.lab.errors import RunError
from pfb.lab.train.loop import train
from pfb.lab.train.output.folder import RunFolder
from tests.lab.train.runs import begun, config, content, file_size_limit, interrupt_evaluation

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


@pytest.fixture
def folder(run):
    """Of a run that has begun, with two lines in its log."""
    return begun(run, {"step": 3, "epoch": 0, "loss": 2.5}, {"step": 6, "epoch": 1, "train_loss": 2.0})


class TestTaking:
    def test_another_runs_folder_is_not_overwritten(self, run):
        train(config(run, epochs=1))
        with pytest.raises(RunError, match="--resume .*--overwrite"):
            train(config(run, epochs=1))
        assert train(config(run, epochs=2, overwrite=True))["config"]["epochs"] == 2
        assert [line["epoch"] for line in RunFolder(run).epochs()] == [1, 2]
        assert [p.name for p in RunFolder(run).checkpoints()] == ["checkpoint_0002"]

    @pytest.mark.parametrize("name", ["thesis.tex", "config.json"])
    def test_a_folder_of_something_else_is_never_touched(self, run, name):
        """A config.json alone makes no run: published models have one as well."""
        run.mkdir()
        (run / name).write_text('{"model_type": "bert"}')
        before = content(run)
        with pytest.raises(RunError, match="something else"):
            train(config(run, overwrite=True))
        assert content(run) == before

    def test_overwriting_leaves_what_is_not_the_runs(self, folder):
        others = {"notes.txt": "tried 0.1", "checkpoint_best/model.bin": "weights", "checkpoint_0002_backup/a": "b"}
        for name, text in others.items():
            (folder.path / name).parent.mkdir(exist_ok=True)
            (folder.path / name).write_text(text)
        (folder.path / "checkpoint_0001").mkdir()
        (folder.path / "checkpoint_0002.draft").mkdir()
        with folder.locked():
            folder.begin(config(folder.path, overwrite=True))
        assert content(folder.path).keys() == {*others, "config.json", ".lock"}
        assert not folder.checkpoints()

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_folder_with_nothing_but_a_draft_of_ours_is_empty(self, run, overwrite):
        """What kill -9 leaves between writing config.json.draft and renaming it."""
        run.mkdir()
        (run / ".lock").touch()
        (run / "config.json.draft").write_text('{"data": ')
        train(config(run, epochs=1, overwrite=overwrite))

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        for out, message in ((tmp_path / "file", "something else"), (tmp_path / "file" / "run", "cannot be written")):
            with pytest.raises(RunError, match=f"--out {out}.*{message}"):
                train(config(out))


class TestLock:
    @pytest.mark.parametrize("changes", [{}, {"overwrite": True}], ids=["resume", "overwrite"])
    def test_who_comes_second_is_refused_and_changes_nothing(self, run, changes, monkeypatch):
        interrupt_evaluation(monkeypatch, at=2)
        with pytest.raises(KeyboardInterrupt):
            train(config(run))
        monkeypatch.undo()
        before = content(run)
        with RunFolder(run).locked(), pytest.raises(RunError, match=f"another process trains in {run}"):
            train(config(run, **changes), resume=not changes)
        assert content(run) == before
        train(config(run, **changes), resume=not changes)

    def test_the_lock_ends_with_its_process_though_a_worker_lives_on(self, folder):
        """A loader's worker notices only after seconds that its parent was killed."""
        end = multiprocessing.get_context("fork").Event()
        with folder.locked():
            worker = multiprocessing.get_context("fork").Process(target=end.wait)
            worker.start()
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    with folder.locked():
                        break
                except RunError:  # the worker has not begun yet
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
            assert worker.is_alive()
        finally:
            end.set()
            worker.join()


class TestReading:
    def test_what_was_written(self, folder):
        assert folder.config() == config(folder.path)
        assert folder.steps() == [{"step": 3, "epoch": 0, "loss": 2.5}]
        assert folder.epochs() == [{"step": 6, "epoch": 1, "train_loss": 2.0}]
        assert folder.summary() is folder.records() is None
        assert folder.checkpoints() == []

    def test_a_line_that_was_cut_off_is_dropped(self, folder):
        with (folder.path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 9, "epo')
        assert len(folder.steps()) == len(folder.epochs()) == 1
        folder.continue_after(1)
        assert (folder.path / "metrics.jsonl").read_text().endswith('"train_loss": 2.0}\n')

    def test_lines_after_the_checkpoint_are_forgotten(self, folder):
        for line in ({"step": 9, "epoch": 1, "loss": 1.5}, {"step": 12, "epoch": 2, "train_loss": 1.0}):
            folder.log(line)
        folder.continue_after(1)
        assert [line["step"] for line in folder.steps() + folder.epochs()] == [3, 6]

    @pytest.mark.parametrize(
        ("name", "read", "spoilt"),
        [
            ("config.json", RunFolder.config, [b"{}", b"5", b"\xff\xfe", b'{"data": ']),
            ("metrics.jsonl", RunFolder.epochs, [b"5\n", b"\xff\xfe\n", b'{"step": 3\n', b'{"step": 3}\n']),
            ("summary.json", RunFolder.summary, [b"[]", b"{}", b"\xff\xfe", b'{"config": {}']),
            ("records.pt", RunFolder.records, [b"", b"PK", b"cos\nsystem\n(S'true'\ntR."]),
        ],
    )
    def test_a_damaged_file_is_named_on_one_line(self, folder, name, read, spoilt):
        for damage in spoilt:
            (folder.path / name).write_bytes(damage)
            with pytest.raises(RunError, match=f"{name} is damaged or cannot be read") as raised:
                read(folder)
            assert "\n" not in str(raised.value)

    def test_records_of_something_else(self, folder):
        torch.save({"seen": torch.zeros(3)}, folder.path / "records.pt")
        with pytest.raises(RunError, match="records.pt is damaged"):
            folder.records()

    def test_a_file_that_may_not_be_read(self, folder, monkeypatch, capsys):
        def forbidden(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("pfb.lab.files.read_text", forbidden)
        with pytest.raises(SystemExit) as stopped:
            cli.main(["train", "--resume", str(folder.path)])
        assert stopped.value.code == 1
        error = capsys.readouterr().err
        assert error.startswith(f"pfb: {folder.path}/config.json is damaged or cannot be read ([Errno 13]")
        assert error.count("\n") == 1

    def test_settings_of_another_version(self, folder):
        (folder.path / "config.json").write_text('{"data": "digits", "data_root": "data", "out": "x", "warp": 9}')
        with pytest.raises(RunError, match="not written by this version.*warp"):
            folder.config()


class TestFaultsWhileItRuns:
    """Each ends in one line that says how to go on."""

    @pytest.fixture
    def one_epoch(self, run, monkeypatch):
        interrupt_evaluation(monkeypatch, at=2)
        with pytest.raises(KeyboardInterrupt):
            train(config(run))
        monkeypatch.undo()
        return run

    def go_on(self, run):
        with pytest.raises(RunError) as raised:
            train(RunFolder(run).config(), resume=True)
        message = str(raised.value)
        assert message.startswith(f"the run in {run} stopped: ")
        assert message.endswith(f"are on disk (checkpoint_0001); continue with: pfb train --resume {run}")
        assert "\n" not in message
        return message

    @pytest.mark.parametrize("name", ["tensorboard", "records.pt.draft", "samples.csv.draft", "summary.json.draft"])
    def test_a_file_that_cannot_be_written(self, one_epoch, name):
        place = one_epoch / name
        if name == "tensorboard":
            for file in place.rglob("*"):
                file.unlink()
            place.rmdir()
            place.touch()
        else:
            place.mkdir()
        with pytest.raises(RunError, match=f"{name}.*pfb train --resume {one_epoch}"):
            train(RunFolder(one_epoch).config(), resume=True)

    def test_a_log_that_cannot_be_written(self, one_epoch, monkeypatch):
        def forbidden(folder, values):
            raise PermissionError(13, "Permission denied", str(folder.path / "metrics.jsonl"))

        monkeypatch.setattr(RunFolder, "log", forbidden)
        assert "metrics.jsonl" in self.go_on(one_epoch)

    def test_a_full_disk_at_a_checkpoint(self, one_epoch):
        before = content(RunFolder(one_epoch).checkpoints()[-1])
        with file_size_limit(200_000):
            assert "could not be written" in self.go_on(one_epoch)
        assert content(RunFolder(one_epoch).checkpoints()[-1]) == before
        assert not list(one_epoch.glob("*.draft"))
        assert train(RunFolder(one_epoch).config(), resume=True)["samples"] == 2 * 192

    def test_a_full_disk_at_the_end(self, one_epoch, monkeypatch):
        write_records = RunFolder.write_records

        def on_a_full_disk(*arguments):
            with file_size_limit(2_000):
                write_records(*arguments)

        monkeypatch.setattr(RunFolder, "write_records", on_a_full_disk)
        with pytest.raises(RunError, match="File too large: .*records.pt.*checkpoint_0002.*--resume"):
            train(RunFolder(one_epoch).config(), resume=True)
        monkeypatch.undo()
        assert not (one_epoch / "records.pt").exists()
        assert train(RunFolder(one_epoch).config(), resume=True)["samples"] == 2 * 192

    def test_a_full_disk_before_the_first_checkpoint(self, run):
        with file_size_limit(200_000), pytest.raises(RunError, match="No epoch was finished: start again, with --over"):
            train(config(run))
        train(config(run, epochs=1, overwrite=True))
