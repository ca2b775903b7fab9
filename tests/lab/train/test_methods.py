"""From settings to what stands at the cut."""

import dataclasses

import pytest
import torch

import pfb
from pfb.lab.errors import RunError
from pfb.lab.train import methods
from pfb.lab.train.config import TrainConfig, in_flags
from pfb.lab.train.idle import idle
from pfb.lab.train.models import build


@pytest.mark.parametrize(("method", "kind"), [("pfb", pfb.RareFirst), ("uniform", pfb.Uniform), ("full", type(None))])
def test_a_methods_importance(method, kind):
    assert isinstance(methods.importance(TrainConfig(method=method)), kind)


def test_an_error_of_the_library_comes_in_flags_and_keeps_its_cause():
    config = TrainConfig(cut="layer9")
    with pytest.raises(RunError, match="--cut must name a layer of the model .got 'layer9'") as raised:
        methods.attach(build("cifar-resnet8", 10, 1, 8), config, methods.importance(config), 100, 1000)
    assert isinstance(raised.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Pass `channel_dim=1` for [N, C, H, W]", "Pass --channel-dim 1 for [N, C, H, W]"),
        ("`scoring_scale` must be at most 1", "--scoring-scale must be at most 1"),
        ("call `select`, or pass `total_steps`", "call `select`, or pass `total_steps`"),
    ],
)
def test_only_settings_become_flags(message, said):
    assert str(in_flags(ValueError(message))) == said


def test_a_method_that_stops_nothing_needs_no_cut():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    blocker = methods.attach(model, TrainConfig(method="full"), None, 10, 1000)
    x = torch.zeros(8, 4)
    model.train()(x)
    assert blocker.select(x) is x


def test_inverse_density_brings_a_sketch_and_a_memory_of_a_third_of_an_epoch():
    config = TrainConfig()
    assert (config.method, config.shallow) == ("inverse-density", "recompute")
    assert config.features == "sketch"
    assert methods.importance(config) == pfb.InverseDensity(4.0)
    sizes = [methods.density(config, samples).state_dict()["size"] for samples in (300, 10**6)]
    assert sizes == [100, 4096]
    assert isinstance(methods.density(TrainConfig(method="pfb"), 300), pfb.DensityEstimator)
    assert methods.importance(TrainConfig(method="inverse-density", gamma=2)) == pfb.InverseDensity(2)


def test_features_and_memory_are_free_to_combine():
    config = TrainConfig(features="momentum", memory=64, shallow="recompute")
    model = build("cifar-resnet8", 10, 1, 8)
    blocker = methods.attach(model, config, methods.importance(config), 100, 1000)
    state = blocker.state_dict()
    assert (state["features"], state["estimator"]["size"]) == ("momentum", 64)


def test_originals_are_read_without_a_scoring_pass_and_not_forgotten():
    config = TrainConfig(features="originals", start=0.0)
    assert idle(dataclasses.replace(config, cut="layer1", scoring_scale=0.5)) == ["cut", "scoring_scale"]
    model = build("cifar-resnet8", 10, 1, 8).train()
    blocker = methods.attach(model, config, methods.importance(config), 1, 1000)
    with pytest.raises(RuntimeError, match="shown nothing"):
        model(torch.randn(8, 1, 8, 8))
    assert blocker.stats["pruned_share"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": 1000}, "--memory must be less than an epoch of 1000 samples"),
        ({"features": "momentum", "shallow": "reuse"}, 'use shallow="recompute"'),
        ({"method": "inverse-density", "channel_dim": 1}, "--channel-dim are of the cut's output"),
    ],
)
def test_what_cannot_be_combined_is_refused(settings, message):
    config = TrainConfig(**settings)
    with pytest.raises(RunError, match=message):
        methods.attach(build("cifar-resnet8", 10, 1, 8), config, methods.importance(config), 100, 1000)


def test_bad_settings_are_refused_before_anything_is_built():
    with pytest.raises(RunError, match="--memory must be at least 2"):
        TrainConfig(memory=1)
    with pytest.raises(RunError, match="--gamma must be a finite number >= 0"):
        TrainConfig(method="inverse-density", gamma=-1)
    with pytest.raises(RunError, match=r"--reweight needs the probability of a draw among all, which --per-class has"):
        TrainConfig(reweight=True, per_class=True)
