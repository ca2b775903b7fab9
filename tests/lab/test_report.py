"""The page on one or several runs."""

import pytest
from PIL import Image

from pfb.lab import cli
from pfb.lab.train.loop import train
from tests.lab.train.runs import config

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


def test_report(tmp_path):
    for name, method in (("a", "pfb"), ("b", "full")):
        train(config(tmp_path / name, method=method))
    cli.main(["report", str(tmp_path / "a"), str(tmp_path / "b")])
    page = (tmp_path / "a" / "report.html").read_text()
    for heading in ("Learning curves", "What was pruned", "Kept most and pruned most often"):
        assert heading in page
    assert page.count("data:image/png;base64,") == 3
    cli.main(["report", str(tmp_path / "b"), "--out", str(tmp_path / "b.png")])
    assert Image.open(tmp_path / "b.png").size[0] > 500


def test_report_of_an_unfinished_run_and_of_none(tmp_path, capsys):
    train(config(tmp_path / "a"))
    (tmp_path / "a" / "summary.json").unlink()
    cli.main(["report", str(tmp_path / "a")])
    assert "so far" in (tmp_path / "a" / "report.html").read_text()
    for arguments, message in (([str(tmp_path)], "holds no run"), ([str(tmp_path / "a"), "--out", "x.pdf"], "end in")):
        with pytest.raises(SystemExit):
            cli.main(["report", *arguments])
        assert message in capsys.readouterr().err
