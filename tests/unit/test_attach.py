"""Arguments of attach, and rules of one's own."""

import logging
import math

import pytest
import torch
from torch import nn

import pfb
from tests import zoo

X = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"cut": "layer9"}, ValueError, r"got 'layer9'.*Did you mean 'layer\d'.*Candidates: "),
            ({"cut": nn.Linear(2, 2)}, ValueError, "not part of the model"),
            ({"cut": 3}, TypeError, "name, a module of the model or None"),
            ({"cut": ""}, ValueError, "the model itself"),
            ({"cut": "blocks"}, ValueError, "never runs itself.*'blocks.1'"),
            ({"prune": 1.0}, ValueError, r"\[0, 1\)"),
            ({"prune": -0.2}, ValueError, "got -0.2"),
            ({"prune": float("nan")}, ValueError, "got nan"),
            ({"prune": "half"}, ValueError, "got 'half'"),
            ({"prune": lambda t: 0.4}, ValueError, "pfb.window"),
            ({"total_steps": 0}, ValueError, "at least 1"),
            ({"rule": pfb.Uniform}, TypeError, r"must be a callable.*Did you mean `pfb.Uniform\(\)`"),
            ({"rule": "uniform"}, TypeError, r"got 'uniform'.*Did you mean `pfb.Uniform\(\)`"),
            ({"rule": 3}, TypeError, r"got 3\)\.$"),
            ({"feature_dim": 0}, ValueError, "feature_dim"),
            ({"channel_dim": True, "features": "cut"}, ValueError, "`channel_dim` must be None or a whole.*got True"),
            ({"channel_dim": 1.5, "features": "cut-spread"}, ValueError, "got 1.5"),
            ({"features": "sketch"}, ValueError, "pfb.BatchPruner"),
            ({"features": pfb.Sketch()}, ValueError, "reads the model's input.*pfb.BatchPruner"),
            ({"shared": "mask"}, TypeError, r"write shared=\('mask',\)"),
            ({"density": 5}, TypeError, "such as `pfb.NeighbourMemory.*got 5, which has no accumulate, "),
            ({"density": pfb.NeighbourMemory}, TypeError, r"a class: write `\(\)` after it"),
            (
                {"channel_dim": 1, "features": lambda x: x},
                ValueError,
                r"got 1\), and `features` of your own.*leave one",
            ),
        ],
    )
    def test_errors_name_rule_value_and_way_out(self, arguments, error, message):
        model = zoo.SmallNet()
        model.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])
        with pytest.raises(error, match=message):
            pfb.attach(model, **{"cut": "layer1", **arguments})
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    def test_not_a_module(self):
        with pytest.raises(TypeError, match="torch.nn.Module"):
            pfb.attach(lambda x: x, "0")

    def test_a_module_as_cut(self):
        model = zoo.SmallNet()
        assert pfb.attach(model, model.layer2).cut == "layer2"

    def test_the_automatic_cut_is_logged(self, caplog):
        with caplog.at_level(logging.INFO, logger="pfb"):
            blocker = pfb.attach(zoo.SmallNet())
        assert blocker.cut == "layer1"
        assert "'layer1'" in caplog.text
        assert "cut='layer1'" in repr(blocker)


class TestImportance:
    def test_own_callable(self):
        model = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
        blocker = pfb.attach(model, "0", 0.5, rule=lambda features: features[:, 0])
        model(torch.tensor([[3.0, 0], [1, 0], [4, 0], [2, 0]]))
        assert blocker.selection.indices.tolist() == [0, 2]
        blocker.step()
        assert blocker.density.centers is None

    def test_own_callable_with_the_estimator(self):
        model = nn.Sequential(nn.Identity(), nn.Linear(6, 2))
        blocker = pfb.attach(
            model,
            "0",
            0.5,
            rule=lambda features, density: -density.log_density(features),
            density=pfb.MovingCenters(4),
        )
        for _ in range(3):
            model(X)
            blocker.step()
        assert blocker.density.ready

    def test_wrong_shape_is_an_error(self):
        model = zoo.mlp(6, 8, 3)
        blocker = pfb.attach(model, "0", 0.4, rule=lambda features: features)
        with pytest.raises(ValueError, match=r"shape \(10,\)"):
            model(X)
        blocker.detach()

    def test_uniform_keeps_each_sample_equally_often(self):
        model = zoo.mlp(6, 8, 3)
        blocker = pfb.attach(model, "0", 0.4, rule=pfb.Uniform())
        kept = torch.zeros(10)
        for _ in range(500):
            model(X)
            kept[blocker.selection.indices] += 1
            blocker.step()
        assert kept.sum() == 3000
        # binomial(500, 0.6): standard deviation 11; six of them
        assert ((kept - 300).abs() < 66).all()

    def test_alpha_is_checked(self):
        with pytest.raises(ValueError, match="got -1"):
            pfb.RareFirst(alpha=-1)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize(
        "rule",
        [
            pfb.RareFirst(),
            lambda features: torch.zeros(len(features)),
            lambda features, density: -features.isnan().any(1).float(),
        ],
        ids=["rare", "constant", "against"],
    )
    def test_broken_samples_are_kept_whatever_the_rule_makes_of_them(self, rule, bad):
        """Dropped, they would hide the trouble from the loss."""
        model = nn.Sequential(nn.Identity(), nn.Linear(6, 2))
        settings = {"rule": rule, "density": pfb.MovingCenters(8)}
        with pfb.attach(model, "0", 0.5, **settings) as blocker:
            model(torch.randn(20, 6))
            blocker.step()
            for i in range(8):
                x = torch.randn(20, 6)
                x[i, 2] = bad
                model(x)
                assert i in blocker.selection.indices
                blocker.step()


def test_one_density_serves_one_blocker_at_a_time():
    """Two that share it would each move it by the other's features."""
    estimator = pfb.MovingCenters()
    first = pfb.attach(zoo.mlp(6, 8, 3), "0", density=estimator)
    with pytest.raises(ValueError, match=r"belongs to another blocker, at the cut '0'.*detach\(\)"):
        pfb.attach(zoo.mlp(6, 8, 3), "0", density=estimator)
    first.detach()
    with pfb.attach(zoo.mlp(6, 8, 3), "0", density=estimator) as second:
        assert second.density is estimator
    del second
    pfb.attach(zoo.mlp(6, 8, 3), "0", density=estimator)
