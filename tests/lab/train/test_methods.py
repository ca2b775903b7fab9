"""From settings to what stands at the cut."""

import pytest
import torch

import pfb
from pfb.lab.errors import RunError
from pfb.lab.train import methods
from pfb.lab.train.config import TrainConfig, in_flags
from pfb.lab.train.models import build


@pytest.mark.parametrize(("method", "kind"), [("pfb", pfb.RareFirst), ("uniform", pfb.Uniform), ("full", type(None))])
def test_a_methods_importance(method, kind):
    assert isinstance(methods.importance(TrainConfig(method=method)), kind)


def test_an_error_of_the_library_comes_in_flags_and_keeps_its_cause():
    config = TrainConfig(cut="layer9")
    with pytest.raises(RunError, match="--cut must name a layer of the model .got 'layer9'") as raised:
        methods.attach(build("cifar-resnet8", 10, 1, 8), config, methods.importance(config), 100)
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
    blocker = methods.attach(model, TrainConfig(method="full"), None, 10)
    x = torch.zeros(8, 4)
    model.train()(x)
    assert blocker.select(x) is x
