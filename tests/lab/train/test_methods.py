"""From settings to what prunes."""

import types

import pytest
import torch

import pfb
from pfb.blocking.paper import LEVELS, START, STOP
from pfb.lab.errors import RunError
from pfb.lab.train import loop, methods
from pfb.lab.train.nets.models import build
from pfb.lab.train.options.config import TrainConfig, in_flags
from pfb.lab.train.output.folder import RunFolder
from tests.lab.train.runs import config, weights

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


def tools(samples=1000, **settings):
    """What prunes before a small model, and inside it."""
    settings = TrainConfig(**settings)
    model, method = build("cifar-resnet8", 10, 1, 8), methods.method_of(settings.method)
    share = settings.schedule()
    return method.pruner(settings, model, share, 100, samples), method.attach(settings, model, share, 100)


def test_copies_is_the_default_of_the_library_and_knows_how_long_an_epoch_is():
    assert TrainConfig().method == "copies"
    default = pfb.BatchPruner()
    pruner, blocker = tools(300)
    assert blocker is None
    assert (pruner.rule, pruner.features.name, pruner.density.size) == (
        default.rule,
        default.features.name,
        default.density.size,
    )
    assert pruner.density.epoch == 300
    assert tools(memory=64)[0].rule == pfb.InverseDensity()
    assert tools(memory=64)[0].density.size == 64


def test_paper_is_what_the_library_calls_the_papers_settings():
    pruner, blocker = tools(method="paper", prune=0.3)
    with pfb.attach(build("cifar-resnet8", 10, 1, 8), **pfb.paper(100, prune=0.3)) as paper:
        assert pruner is None
        assert (blocker.schedule, blocker.total_steps, blocker.cut) == (paper.schedule, 100, paper.cut)
        ours, theirs = blocker.density, paper.density
        assert (type(ours), ours.n_centers, ours.beta) == (type(theirs), theirs.n_centers, theirs.beta)
        assert blocker.state_dict()["features"] == paper.state_dict()["features"]


def test_the_papers_rule_before_the_model_is_given_its_shallow_features():
    pruner, blocker = tools(method="paper-before")
    assert blocker is None
    assert (pruner.rule, pruner.features.cut) == (pfb.RareFirst(), "layer1")
    assert (pruner.schedule.start, pruner.schedule.stop, len(pruner.schedule.ramp)) == (START, STOP, LEVELS)


@pytest.mark.parametrize("method", ["full", "infobatch", "orderdp", "selective-backprop"])
def test_others_prune_no_batch(method):
    assert tools(method=method) == (None, None)


def test_an_error_of_the_library_comes_in_flags_and_keeps_its_cause():
    for method in ("paper", "paper-before"):
        with pytest.raises(RunError, match="--cut must name a layer of the model .got 'layer9'") as raised:
            tools(method=method, cut="layer9")
        assert isinstance(raised.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Pass `channel_dim=1` for [N, C, H, W]", "Pass --channel-dim 1 for [N, C, H, W]"),
        ("`beta` must be at most 1", "--beta must be at most 1"),
        ("call `select`, or pass `total_steps`", "call `select`, or pass `total_steps`"),
    ],
)
def test_only_settings_become_flags(message, said):
    assert str(in_flags(ValueError(message))) == said


@pytest.mark.parametrize(
    ("method", "counts", "steps"),
    [
        ("full", {"trained_samples": 1000}, 1000),
        ("copies", {}, 500),
        ("uniform", {}, 500),
        ("paper", {}, 500 + 500 * 0.3),  # those that stop pay the shallow part
        ("paper-before", {}, 500 + 1000 * 0.3 / 3),  # all are scored without a backward
        ("selective-backprop", {"deep_samples": 500 + 1000}, 500 + 1000 / 3),  # a forward of all
        ("infobatch", {"samples": 500}, 500),  # what is not loaded costs nothing
    ],
)
def test_operations_by_hand(method, counts, steps):
    run = {"samples": 1000, "trained_samples": 500, "deep_samples": 500, "pruned_steps": 100, "processes": 1}
    run |= {"config": {"batch_size": 10}} | counts
    assert methods.method_of(method).full_steps(run, 0.3) == pytest.approx(steps)


class TestOwnRule:
    @pytest.fixture
    def mine(self, monkeypatch):
        module = types.ModuleType("mine")
        module.first = lambda features: -torch.arange(len(features), dtype=torch.float32)
        module.number = 3
        module.two = lambda features: features[:2]
        module.short = lambda features: {}["gone"]
        module.Settings = type("Settings", (), {"__init__": lambda self, size: None})
        monkeypatch.setitem(__import__("sys").modules, "mine", module)

    def test_it_decides(self, tmp_path, mine):
        summary = loop.train(config(tmp_path / "run", method="mine:first", epochs=1, start=0.0, stop=1.0, prune=0.5))
        assert summary["trained_samples"] == summary["samples"] // 2
        records = RunFolder(tmp_path / "run").records()
        assert set((records["kept"] / records["seen"]).tolist()) == {0.0, 1.0}
        assert weights(tmp_path / "run")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("mine:two", r"the rule .*: `rule` must return one value per sample, shape \(2,\) \(got \(2, \d+\)\)"),
            ("mine:short", r"the rule \S+<lambda>, given features \(2, \d+\): KeyError: 'gone'"),
        ],
    )
    def test_what_is_wrong_is_told_before_training(self, tmp_path, mine, name, message):
        with pytest.raises((RunError, ValueError), match=message) as told:
            loop.train(config(tmp_path / "run", method=name))
        assert told.value.__cause__ is not None
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("mine:other", "--method mine:other: AttributeError"),
            ("nowhere:rule", "--method nowhere:rule: ModuleNotFoundError"),
            ("mine:number", "must be a function of features .*got int"),
            ("mine:Settings", "--method mine:Settings: TypeError: .*'size'"),
        ],
    )
    def test_what_is_none_is_refused_before_data_are_loaded(self, tmp_path, mine, name, message):
        with pytest.raises(RunError, match=message):
            loop.train(config(tmp_path / "run", method=name, data="imagefolder:/nowhere"))
