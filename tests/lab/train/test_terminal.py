"""What a run says while it goes on."""

import io
import re
import time
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from pfb.lab.train import methods, terminal
from pfb.lab.train.batches.loaders import Waiting
from pfb.lab.train.evaluation import evaluate
from pfb.lab.train.loop import train
from pfb.lab.train.options.config import TrainConfig
from pfb.lab.train.terminal import Bars
from tests.lab.train.runs import config


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


class TestLines:
    """A command that is printed can be copied and found, wherever the output goes."""

    def test_each_is_one_and_says_names_as_they_are(self, capsys):
        text = f"pfb train --resume {'/a/long/place' * 12}/[red]/[/x]/:smile:"
        terminal.console.print(text)
        assert capsys.readouterr().out == text + "\n"

    def test_tables_have_neither_boxes_nor_folds_where_no_terminal_draws_them(self, capsys):
        table = Table(title="[/x]", show_header=False)
        table.add_row("training time", "word " * 30 + "end")
        terminal.show(table)
        assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
            "[/x]",
            f"training time  {'word ' * 30}end",
        ]

    def test_on_a_terminal_they_do(self, monkeypatch):
        place = console(terminal=True)
        monkeypatch.setattr(terminal, "console", place)
        table = Table(title="a", show_header=False)
        table.add_row("training time", "word " * 30)
        terminal.show(table)
        assert "┌" in place.file.getvalue()

    def test_a_run_in_a_long_folder(self, tmp_path, capsys):
        run = tmp_path / ("long" * 30)
        train(config(run, epochs=1))
        capsys.readouterr()
        train(config(run, epochs=1), resume=True)
        assert capsys.readouterr().out.startswith(f"{run} is finished already; nothing was changed\n")


class TestBars:
    def test_where_no_bar_can_be_drawn_a_line_comes_now_and_then(self, monkeypatch):
        clock = iter(range(0, 10_000, 20))
        monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
        place = console(terminal=False)
        bars = Bars(place)
        with bars.shown(), bars.task("train", 2000) as done:
            for count in range(0, 2001, 200):
                done(count)
        said = place.file.getvalue().splitlines()
        assert said[0] == "train: 200 of 2,000, about 360 s left"
        assert 3 < len(said) < 8, "not one for each, and none at the end, which is told anyway"

    def test_on_a_terminal_a_bar_is_drawn_and_removed(self):
        place = console(terminal=True)
        bars = Bars(place)
        with bars.shown(), bars.task("train", 7) as train:
            train(3)
            with bars.task("test", 9) as test:
                test(4)
                bars._progress.refresh()
        text = place.file.getvalue()
        assert "3/7" in text
        assert "4/9" in text
        assert text.rpartition("4/9")[2].count("\x1b[2K") > 1, "the lines are erased"

    @pytest.mark.parametrize("terminal", [True, False])
    def test_other_processes_are_silent(self, terminal):
        place = console(terminal)
        bars = Bars(place, shown=False)
        with bars.shown(), bars.task("train", 7) as train:
            train(3)
        assert place.file.getvalue() == ""


def test_waiting_is_what_the_loader_takes_and_not_the_step():
    def slow():
        for i in range(3):
            time.sleep(0.02)
            yield i

    batches = Waiting(slow(), torch.device("cpu"))
    for _ in batches:
        time.sleep(0.2)
    assert 0.06 <= batches.seconds() < 0.5


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ({"method": "infobatch", "prune": 0.3, "ramp": 2}, set()),
        ({"method": "orderdp", "cut": "layer1", "memory": 30}, {"cut", "memory"}),
        ({"method": "full", "prune": 0.3, "start": 0.2, "cut": "layer1"}, {"prune", "start", "cut"}),
        ({"method": "uniform", "memory": 100, "cut": "layer1"}, {"memory", "cut"}),
        ({"method": "copies", "cut": "layer1", "memory": 100, "fill": True}, {"cut"}),
        ({"method": "copies", "memory": 30, "n_centers": 16, "alpha": 0.1}, {"n_centers", "alpha"}),
        ({"method": "paper", "alpha": 0.1, "memory": 30, "n_centers": 16, "feature_dim": 8}, {"memory"}),
        ({"method": "paper-before", "cut": "layer1", "feature_dim": 8}, {"feature_dim"}),
        ({"method": "release", "alpha": 0.1, "beta": 0.1}, {"alpha"}),
        ({"method": "paper", "start": 0.05, "stop": 0.875, "ramp": 0}, set()),
    ],
)
def test_settings_without_effect_are_known(settings, unused):
    assert set(methods.unused(TrainConfig(**settings))) == unused


@pytest.mark.usefixtures("_fresh_accelerate")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_run_says_what_it_leaves_out_and_what_it_waited_for(tmp_path, capsys):
    summary = train(config(tmp_path / "run", epochs=1, train_samples=400, method="infobatch", cut="layer1"))
    said = " ".join(capsys.readouterr().out.split())
    assert "dropped: 16 samples" in said
    assert "--cut" in said
    assert re.search(r"--cut.*: without effect on this run", said)
    assert "waiting for data" in said
    assert 0 < summary["waiting_seconds"] < summary["train_seconds"]
    assert 0 <= summary["waiting_share"] < 1


@pytest.mark.usefixtures("_fresh_accelerate")
def test_an_evaluation_tells_how_far_it_is_and_the_accuracy_among_five():
    from accelerate import Accelerator

    from pfb.lab.train.data import load

    source: Any = load(config("unused"))
    batches = [{"input": source.test.images[i : i + 8], "label": source.test.labels[i : i + 8]} for i in (0, 8, 16)]
    ranking = torch.arange(10.0).flip(0)  # class 0 first, class 9 last

    class Model(torch.nn.Module):
        def forward(self, x):
            return ranking.expand(len(x), 10)

    told, accelerator = [], Accelerator(cpu=True)
    found = evaluate(Model(), accelerator.prepare(batches), source, 0.0, accelerator, told.append)
    labels = source.test.labels[:24]
    assert found["top5_accuracy"] == pytest.approx((labels < 5).float().mean().item())
    assert found["accuracy"] == pytest.approx((labels == 0).float().mean().item())
    assert told == [1, 2, 3]
