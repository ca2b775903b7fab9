"""Files are written anew and whole, and a stranger's links, pipes and code are left alone."""

import csv
import os

import pytest
import torch

from pfb.lab import files


@pytest.fixture
def precious(tmp_path):
    """A file of the user, elsewhere."""
    place = tmp_path / "bashrc"
    place.write_text("precious")
    return place


@pytest.mark.parametrize("name", ["a.json", "a.json.draft"])
def test_a_link_is_replaced_and_not_followed(tmp_path, precious, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(precious)
    files.write_text(tmp_path / "run" / "a.json", "new")
    assert precious.read_text() == "precious"
    assert [(p.name, p.is_symlink(), p.read_text()) for p in (tmp_path / "run").iterdir()] == [("a.json", False, "new")]


def test_what_fails_leaves_what_was_there(tmp_path):
    files.write_text(tmp_path / "a", "old")
    with pytest.raises(TypeError), files.replacing(tmp_path / "a") as file:
        file.writelines([b"new", None])
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_new_file_may_be_read_by_those_whom_the_user_allows(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_lines_are_added_to_no_link(tmp_path, precious):
    (tmp_path / "log").symlink_to(precious)
    with pytest.raises(OSError, match=r"it is a link, which is not written through; remove it: .*log"):
        files.appending(tmp_path / "log")
    for text in ("a", "b"):
        with files.appending(tmp_path / "other") as file:
            file.write(text)
    assert (tmp_path / "other").read_text() == "ab"


def test_pipes_and_devices_are_neither_read_nor_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match="it is no regular file"):
            files.read_text(tmp_path / name)
    with pytest.raises(OSError, match="pipe"):
        files.appending(tmp_path / "pipe")


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path):
    files.write_table(tmp_path / "a.csv", [["file"], [os.fsdecode(b"caf\xe9.png")]])
    assert (tmp_path / "a.csv").read_bytes() == b"file\r\ncaf\xe9.png\r\n"
    with (tmp_path / "a.csv").open(newline="", errors="surrogateescape") as file:
        assert os.fsencode([*csv.reader(file)][1][0]) == b"caf\xe9.png"


def test_json_without_end_is_no_json(tmp_path):
    (tmp_path / "a").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        files.read_json(tmp_path / "a")


def test_a_folder_that_is_a_link_is_removed_as_a_link(tmp_path, precious):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    files.remove(tmp_path / "link")
    files.remove(tmp_path / "nothing")
    assert (tmp_path / "folder" / "a").exists()
    files.remove(tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["bashrc"]


class _Executed:
    def __reduce__(self):
        return print, ("a pickle was executed",)


def test_a_foreign_pickle_is_refused_without_advice_to_run_it(tmp_path, capsys):
    torch.save({"a": _Executed()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="it is no file of tensors and plain values, and nothing else is loaded"):
        files.read_tensors(tmp_path / "a.pt")
    assert "executed" not in capsys.readouterr().out
