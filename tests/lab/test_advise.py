"""``pfb advise``: what it prints, its page, its list, and what it refuses."""

import contextlib
import csv
import os
import re
import shlex
import shutil

import pytest
import torch
from rich.console import Console

from pfb.lab import cli
from pfb.lab.advise import _teller
from pfb.lab.train.terminal import Bars
from tests.lab.scenes import picture, save_frame

pytestmark = pytest.mark.usefixtures("_made_up_times")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve scenes of twelve frames, as many single pictures, two classes; one file twice."""
    root = tmp_path_factory.mktemp("video")
    generator = torch.Generator().manual_seed(0)

    for number in range(12):
        scene = picture(generator)
        for frame in range(12):
            save_frame(root / f"train/class{number % 2}/scene{number:02d}_{frame:02d}.png", scene, generator)
    for number in range(144):
        save_frame(root / f"train/class{number % 2}/single{number:03d}.png", picture(generator), generator)
    for number in range(4):
        save_frame(root / f"val/class{number % 2}/{number}.png", picture(generator), generator)
    first = root / "train/class0/scene00_00.png"
    (first.parent / "again.png").write_bytes(first.read_bytes())
    return root


def run(capsys, *args):
    cli.main(["advise", "--cpu", *map(str, args)])
    return capsys.readouterr().out


def test_a_folder_of_clips(folder, tmp_path, capsys):
    page, table = tmp_path / "new/advice.html", tmp_path / "copies.csv"
    shown = run(capsys, "--data", f"imagefolder:{folder}", "--batch-size", 16, "--out", page, "--export", table)
    assert "289 of 289 samples looked at, in batches of 16, on cpu." in shown
    assert "Recommended: remove these copies once." in shown
    assert "0.3% because they are equal to others to the last bit" in shown
    assert "of 4 samples 0.0% have a near-copy in training; 0.0% there or in the test" in shown
    assert "Or prune in the batch: loader = pfb.prune_batches(loader, prune=0.45" in shown
    assert re.search(r"pfb train --data \S+ --model cifar-resnet8 --drop \S+copies.csv --method full", shown)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups = {}
    for row in rows:
        assert (folder / row["file"]).is_file()
        groups.setdefault(row["group"], []).append(row)
    assert len(groups) == 12
    for members in groups.values():
        assert [row["kept"] for row in members] == ["yes"] + ["no"] * (len(members) - 1)
        assert len({re.sub("again", "scene00", row["file"].split("/")[-1])[:7] for row in members}) == 1
    assert sorted(map(len, groups.values())) == [12] * 11 + [13]
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 12 * 8
    assert "train/class1/scene01_" in text
    assert "http" not in text  # no resource of another place
    assert "Recommended: remove these copies once." in text
    assert "Or draw copies less often" in text


def test_the_command_that_is_printed_can_be_run(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pfb.adviser.near_copies.FADING", -1.0)  # as of log lines: copies shade into the rest
    shown = run(capsys, "--data", f"imagefolder:{folder}", "--batch-size", 16, "--out", tmp_path / "a.html")
    (command,) = re.findall(r"pfb (train .*--method copies .*)", shown)
    cli.main([*shlex.split(command), "--dry-run", "--workers", "0"])


def test_which_groups_a_split_sets_aside_decides_nothing(folder, tmp_path, capsys, monkeypatch):
    root = tmp_path / "unsplit"
    shutil.copytree(folder / "train", root, ignore=shutil.ignore_patterns("again*"))
    told = set()
    for seed in range(4):
        monkeypatch.setattr("pfb.lab.train.data.split.SEED", seed)
        args = ["--data", f"imagefolder:{root}", "--split", "groups", "--batch-size", 16, "--overwrite"]
        shown = run(capsys, *args, "--out", tmp_path / "a.html")
        told |= set(re.findall("Recommended: (.*?)\\.", shown))
        assert "samples set aside of the same data decide nothing" in shown
        assert "near-copy in training" not in shown
    assert told == {"remove these copies once"}


def test_copies_that_are_equal_are_to_be_dropped_by_the_list(folder, tmp_path, capsys):
    root = tmp_path / "twice"
    shutil.copytree(folder, root, ignore=shutil.ignore_patterns("scene*", "again*"))
    for file in list((root / "train").glob("*/single*.png")):
        shutil.copy(file, file.with_name(f"again_{file.name}"))
    table = tmp_path / "copies.csv"
    shown = run(capsys, "--data", f"imagefolder:{root}", "--out", tmp_path / "a.html", "--export", table)
    assert "Recommended: remove these copies once." in shown
    (command,) = re.findall(r"pfb (train .*--drop .*)", shown)
    assert str(table) in command
    cli.main([*shlex.split(command), "--dry-run", "--workers", "0"])


def test_what_is_left_out_though_it_has_no_copy_is_shown(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pfb.adviser.shares.LIKE_A_COPY", 1.0)  # all are
    run(capsys, "--data", f"imagefolder:{folder}", "--out", tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert "Kept least often by the default" in text
    assert text.count("data:image/png;base64,") == 12 * 8 + 24


def test_where_there_is_no_terminal_lines_tell_how_long_it_takes(monkeypatch, capsys):
    monkeypatch.setattr("pfb.lab.train.terminal.SECONDS_PER_LINE", 0)
    bars = Bars(Console(width=200))
    with bars.shown(), contextlib.ExitStack() as open_one:
        tell = _teller(bars, open_one)
        for what in ("reading samples", "timing steps"):
            for done in (0, 25, 50, 100):
                tell(what, done, 100)
    shown = capsys.readouterr().out
    for what in ("reading samples", "timing steps"):
        assert re.search(rf"{what}: 50 of 100, about \d+ s left", shown)


def test_clean_images_and_part_of_the_data(tmp_path, capsys):
    shown = run(capsys, "--samples", 600, "--out", tmp_path / "a.html")
    assert "600 of 1,437 samples looked at" in shown
    assert "Recommended: nothing to spare." in shown


def test_text_is_shown_as_text(tmp_path, capsys, monkeypatch):
    blocks = torch.randint(97, 122, (90, 64))
    blocks = torch.cat([blocks, blocks[:2].repeat(14, 1)])
    stream = blocks[torch.randperm(len(blocks))].flatten()
    monkeypatch.setattr("pfb.lab.train.data.generated._standard_library_text", lambda: stream)
    shown = run(capsys, "--data", "text", "--batch-size", 4, "--out", tmp_path / "a.html")
    assert "in 2 groups" in shown
    assert "--export copies.csv lists" in shown
    assert "data:image" not in (page := (tmp_path / "a.html").read_text())
    assert all("".join(map(chr, block.tolist())) in page for block in blocks[:2])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--samples", "1"], "--samples must be at least 2"),
        (["--out", "page.txt"], "--out must end in .html"),
        (["--out", "/proc/none/page.html"], "--out /proc/none/page.html cannot be written"),
        (["--export", "list.json"], "--export must end in .csv or .txt"),
        (["--data", "nothing"], "--data must be"),
        (["--model", "nothing"], "--model must be"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(args, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["advise", *args])
    assert stopped.value.code == 1
    told = capsys.readouterr().err.strip()
    assert says in told
    assert "\n" not in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--out", "--export"])
def test_an_older_page_or_list_is_replaced_only_where_that_is_asked_for(tmp_path, monkeypatch, capsys, flag):
    monkeypatch.chdir(tmp_path)
    name = {"--out": "advice.html", "--export": "copies.csv"}[flag]
    (tmp_path / name).write_text("eleven minutes")
    args = ["--export", name] if flag == "--export" else []
    with pytest.raises(SystemExit):
        cli.main(["advise", *args])
    told = capsys.readouterr().err
    assert told == f"pfb: {name} is there already: name another by {flag}, or pass --overwrite\n"
    assert (tmp_path / name).read_text() == "eleven minutes"
    run(capsys, "--samples", 100, "--overwrite", *args)
    assert (tmp_path / name).read_text() != "eleven minutes"


def test_names_that_are_not_utf8(folder, tmp_path, capsys):
    """Of old data sets: the page shows their codes, the list keeps their bytes."""
    root = tmp_path / "data"
    shutil.copytree(folder, root)
    strange = os.fsencode(root) + b"/train/class0/scene00_08\xff\xfe.png"
    os.rename(root / "train/class0/scene00_08.png", strange)
    shown = run(
        capsys, "--data", f"imagefolder:{root}", "--batch-size", 16,
        "--out", tmp_path / "a.html", "--export", tmp_path / "a.csv",
    )  # fmt: skip
    assert "wrote" in shown
    assert r"train/class0/scene00_08\udcff\udcfe.png" in (tmp_path / "a.html").read_text()
    assert b"train/class0/scene00_08\xff\xfe.png" in (tmp_path / "a.csv").read_bytes()


def test_a_model_that_does_not_fit_the_images(folder, tmp_path, capsys):
    out = tmp_path / "a.html"
    with pytest.raises(SystemExit):
        cli.main(["advise", "--cpu", "--data", f"imagefolder:{folder}", "--model", "squeezenet1_0", "--out", str(out)])
    assert "the model does not run on the loader's first batch ((128, 3, 16, 16) float32)" in capsys.readouterr().err
    assert not out.exists()
