"""The report reads what is whole, and says what is not."""

import json
import shutil

import pytest
import torch
from matplotlib.text import Text

from pfb.lab import cli
from pfb.lab.errors import RunError
from pfb.lab.report import figures, page, run_folders, write
from pfb.lab.report.run import HEADINGS, Run
from pfb.lab.train.loop import train
from pfb.lab.train.options.config import TrainConfig
from tests.lab.train.runs import config as small_run
from tests.lab.train.runs import image_folder

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


def make_run(folder, **changes):
    """A finished run's files, as a short training on digits would leave them."""
    folder.mkdir()
    paper = {"method": "paper"}
    config = TrainConfig(**{"train_samples": 40, "out": folder, "prune": 0.5, **paper, **changes})
    (folder / "config.json").write_text(config.to_json())
    metrics = {"train_loss": 2.0, "test_loss": 2.1, "test_accuracy": 0.25, "pruned_share": 0.5}
    lines = [{"epoch": epoch, "step": 10 * epoch, **metrics} for epoch in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "config": json.loads(config.to_json()),
        "processes": 1,
        "full_samples": 80,
        "trained_samples": 40,
        "cut": "layer1",
        "test_accuracy": 0.25,
    }
    summary |= {"time_saved": 0.125, "train_seconds": 7.0, "full_train_seconds": 8.0, "compute": 0.6}
    summary |= {"device": "some processor, 1 threads", "train_cpu_seconds": 7.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    seen = torch.full((40,), 0 if config.method == "full" else 2)
    records = {"seen": seen, "kept": torch.arange(40) % 3, "log_density": torch.linspace(-3, 3, 40)}
    torch.save(records, folder / "records.pt")
    return folder


def test_the_page_shows_each_run_and_every_figure(tmp_path):
    runs = [make_run(tmp_path / "<a>"), make_run(tmp_path / "b", method="full")]
    text = write(runs).read_text()
    assert "&lt;a&gt;" in text
    assert "<a>" not in text
    for heading in (*HEADINGS, "Learning curves", "What was pruned", "Kept most and pruned most often"):
        assert heading in text
    assert text.count("data:image/png;base64,") == 3
    assert "40 of 80 (50.0%)" in text
    assert "<td>pfb train --train-samples=40 --method=paper --prune=0.5</td>" in text
    assert "<td>some processor, 1 threads</td>" in text


def test_the_difference_to_each_twin_stands_beside_the_time_saved(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", method="full"), make_run(tmp_path / "c", lr=1.0)]
    summary = json.loads((runs[1] / "summary.json").read_text())
    summary |= {"test_accuracy": 0.27, "train_cpu_seconds": 14.0, "compute": 1.0}
    (runs[1] / "summary.json").write_text(json.dumps(summary))
    text = page.html([Run(run) for run in runs], [])
    assert text.count("<li>") == 2
    assert "<li>c: paper 50%: 25.00% test accuracy, 60.0% of full training" in text  # it has no twin here
    assert "12.5% of the training time saved (7.0 s; 8.0 s on full data, reckoned" in text
    assert "<td>full</td><td>1</td><td>27.00%</td><td>-2.00</td><td>14.0 s</td><td>50.0%</td><td>100%</td>" in text
    assert "paper 50% minus full: -2.00 points (one seed, so no interval), at 60% of its compute" in text
    assert "Beside their twins" not in page.html([Run(run) for run in runs[1:]], [])


def test_seeds_are_one_line_and_one_section(tmp_path, monkeypatch):
    for seed in range(3):
        make_run(tmp_path / f"s{seed}", seed=seed)
    runs = [Run(tmp_path / f"s{seed}") for seed in range(3)]
    runs[1].epochs[1]["test_accuracy"] = 0.85
    figure = figures.curves(runs)
    (accuracy,) = figure.axes[1].lines
    assert accuracy.get_label() == "s0: paper 50%, mean of 3 runs"
    assert list(accuracy.get_ydata()) == pytest.approx([25, 45])
    monkeypatch.setattr(page, "png", lambda drawn: b"picture")
    text = write([tmp_path]).read_text()
    assert text.count("<h2>Kept most and pruned most often, by class") == 1
    assert "log density" not in text


def test_samples_are_shown_of_every_run_but_those_of_chance(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "png", lambda drawn: b"picture")
    for name, method in (("a", "paper"), ("b", "uniform"), ("c", "full"), ("d", "copies")):
        make_run(tmp_path / name, method=method)
    text = write([tmp_path]).read_text()
    for name, shown in (("a", True), ("b", True), ("c", False), ("d", True)):
        assert (f"Kept most and pruned most often, by class ({name})" in text) == shown
    assert text.count("chance alone") == 1
    assert text.count("data:image/png;base64,") == 4  # curves, what was pruned, samples of a and d


def test_a_run_brings_its_twins_and_a_folder_its_runs(tmp_path):
    a, full, b = (make_run(tmp_path / name) for name in ("a", "a-full", "b"))
    (a / "control.json").write_text('{"arms": ["full", "short"], "seeds": [0, 1]}')
    (tmp_path / "c").mkdir()
    assert run_folders([a]) == [a, full]
    assert run_folders([full, a]) == [full, a]
    assert run_folders([tmp_path]) == [a, full, b]
    with pytest.raises(RunError, match="c: there is no run .*nor a folder that holds one"):
        run_folders([tmp_path / "c"])


def test_a_run_that_is_not_finished(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "summary.json").unlink()
    (run / "records.pt").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_lo')
    text = write([run]).read_text()
    assert "25.00% so far" in text
    assert text.count("data:image/png;base64,") == 1


class _Executed:
    def __reduce__(self):
        return print, ("a pickle of the report was executed",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("records.pt", b"no archive", "records.pt is damaged or cannot be read"),
        ("records.pt", "pickle", "records.pt is damaged or cannot be read"),
        ("records.pt", "tensor", "records.pt is damaged or cannot be read .it holds something else"),
        ("summary.json", b"{", "summary.json is damaged"),
        ("summary.json", b"[]", "summary.json is damaged"),
        ("summary.json", b"\xff\xfe", "summary.json is damaged"),
        ("metrics.jsonl", b"5\n", "metrics.jsonl is damaged .*line 1 is 5"),
        ("metrics.jsonl", b'{"epoch": 1}\n{"epo\n{"epoch": 2}\n', "metrics.jsonl is damaged .*line 2"),
        ("metrics.jsonl", b"\xff\xfe\n", "metrics.jsonl is damaged"),
        ("config.json", b"\xff\xfe", "config.json is damaged"),
        ("config.json", b"5", "config.json was not written by this version"),
        ("config.json", b"[" * 100_000, "config.json was not written by this version"),
        ("summary.json", b"[" * 100_000, "summary.json is damaged"),
        ("summary.json", b'{"config": 5}', "summary.json is damaged"),
        ("metrics.jsonl", b'{"epoch": "7", "train_loss": 1}\n', "metrics.jsonl is damaged"),
        ("metrics.jsonl", b'{"epoch": 7, "train_loss": 1}\n', "metrics.jsonl lacks 'pruned_share'"),
        ("control.json", b"[" * 100_000, "control.json is damaged"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, capsys, name, content, said):
    run = make_run(tmp_path / "a")
    if isinstance(content, str):
        torch.save({"pickle": _Executed(), "tensor": torch.zeros(3)}[content], run / name)
    else:
        (run / name).write_bytes(content)
    with pytest.raises(RunError, match=said) as raised:
        write([run])
    assert "\n" not in str(raised.value)
    assert "executed" not in capsys.readouterr().out


def test_names_are_drawn_as_they_are(tmp_path, monkeypatch):
    """Neither formulas nor letters that no font has, nor bytes that are none, end a report."""
    names = [r"a$\q$", "$$", "b$x^{$", "犬", "caf\udce9", "e\x1b[2J"]
    image_folder(tmp_path / "data")
    for part in ("train", "test"):
        for name in names:
            shutil.copytree(tmp_path / "data" / part / "dark", tmp_path / "data" / part / name)
    run = make_run(tmp_path / "r$\\q$", data=f"imagefolder:{tmp_path / 'data'}", train_samples=40)
    drawn, png = [], page.png
    monkeypatch.setattr(page, "png", lambda given: drawn.append(given) or png(given))
    write([run])
    labels = {text.get_text() for figure in drawn for text in figure.findobj(Text)}
    assert {r"a$\q$", "$$", "b$x^{$", "犬", r"caf\udce9", r"e\x1b[2J"} <= labels


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "records.pt").unlink()  # nor does it take long
    (run / "x.html").mkdir()
    for out in (run / "config.json" / "x.html", run / "x.html"):
        with pytest.raises(RunError, match=rf"--out {out} cannot be written \(.*\)"):
            write([run], out)


def test_runs_of_other_classes_are_not_drawn_under_the_first_ones(tmp_path):
    runs = [Run(make_run(tmp_path / name)) for name in "ab"]
    runs[1].source = None
    ten = figures.pruning(runs).axes[-1]
    bars = [[bar.get_width() for bar in group] for group in ten.containers]
    assert [label.get_text() for label in ten.get_yticklabels()] == [str(c) for c in range(10)]
    shares = figures.kept_by_class(runs[0])
    assert len(bars) == 1
    assert ten.lines[0].get_xdata()[0] == pytest.approx(100 * figures.mean_kept(runs[0]))
    assert bars[0] == pytest.approx([100 * share for share in shares.values()])
    assert figures.kept_by_class(runs[1]) == {}


def test_of_two_runs(tmp_path):
    for name, method in (("a", "paper"), ("b", "full")):
        train(small_run(tmp_path / name, method=method))
    cli.main(["report", str(tmp_path / "a"), str(tmp_path / "b")])
    page = (tmp_path / "a" / "report.html").read_text()
    for heading in ("Learning curves", "What was pruned", "Kept most and pruned most often"):
        assert heading in page
    assert page.count("data:image/png;base64,") == 3


def test_of_none_and_to_a_file_of_another_kind(tmp_path, capsys):
    make_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for arguments, message in (
        ([str(tmp_path / "b")], "there is no run"),
        ([str(tmp_path / "a"), "--out", "x.pdf"], "end in"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["report", *arguments])
        assert message in capsys.readouterr().err
