"""The scoring pass sees what the forward proper sees, and what of it cannot be taken back."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import pfb
from tests import zoo
from tests.unit.test_side_effects import Two, X, like_plain


class TestWhatEvaluationAndNoGradSwitchOn:
    def test_cached_parametrizations(self):
        class Symmetric(nn.Module):
            def forward(self, x):
                return x.triu() + x.triu(1).mT

        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
        for layer in (model[0], model[2]):
            parametrize.register_parametrization(layer, "weight", Symmetric())
        plain = copy.deepcopy(model)
        pruner = pfb.BatchPruner(0.5, features=pfb.Shallow(model, "1"), rule=pfb.RareFirst())
        with parametrize.cached():
            model(pruner(X.double())).square().sum().backward()
            assert parametrize._cache_enabled == 1, "as it was"
            kept = pruner.selection.indices
        plain(X[kept].double()).square().sum().backward()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)

    @pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
    @pytest.mark.parametrize(
        "norm",
        [
            parametrizations.spectral_norm,
            torch.nn.utils.spectral_norm,
            parametrizations.weight_norm,
            parametrizations.orthogonal,
        ],
    )
    def test_weights_that_are_computed_anew(self, norm):
        model = Two()
        model.a, model.b = norm(model.a), norm(model.b)
        like_plain(model, X, steps=4)

    def test_padded_batches_do_not_become_nested_tensors(self):
        """The fused path of attention layers in evaluation mode makes them of a padding mask."""

        class Encoder(nn.Module):
            def __init__(self):
                super().__init__()
                layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
                self.a, self.b = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

            def forward(self, x, src_key_padding_mask):
                hidden = self.a(x, src_key_padding_mask=src_key_padding_mask)
                return self.b(hidden.masked_fill(src_key_padding_mask[..., None], 0).sum(1))

        padding = torch.arange(5) >= torch.arange(10)[:, None] % 3 + 2
        for cut in ("a", "a.layers.0"):
            like_plain(Encoder(), torch.randn(10, 5, 8), src_key_padding_mask=padding, cut=cut)
        assert torch.backends.mha.get_fastpath_enabled(), "as it was"

    @pytest.mark.parametrize("inner", [False, True])
    @pytest.mark.parametrize("outer", [False, True])
    def test_autocast_around_and_inside_the_model(self, inner, outer):
        """Weights cast in the scoring pass, without graph, must not be served to the forward proper
        from autocast's cache.
        """

        class Net(Two):
            def forward(self, x):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inner or outer):
                    return super().forward(x)

        model = Net()
        pruner = pfb.BatchPruner(0.5, features=pfb.Shallow(model, "a"), rule=pfb.RareFirst())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
            x, y = pruner(X, torch.randint(3, (10,)))
            loss = nn.functional.cross_entropy(model(x).float(), y)
            assert torch.is_autocast_cache_enabled()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


class TestHooks:
    mean, scale = torch.arange(6.0), torch.tensor([9.0, -4, 1, 3, -8, 2])  # another order of samples

    @pytest.mark.parametrize("with_kwargs", [False, True])
    @pytest.mark.parametrize("order", ["before", "after", "prepended"])
    def test_pre_hooks_of_the_model_are_seen_whenever_they_come(self, with_kwargs, order):
        model, seen = Two(), []

        def positional(module, args):
            seen.append(len(args[0]))
            return ((args[0] - self.mean) * self.scale,)

        def keyword(module, args, kwargs):
            seen.append(len(kwargs["x"]))
            return args, {"x": (kwargs["x"] - self.mean) * self.scale}

        def register():
            hook = keyword if with_kwargs else positional
            model.register_forward_pre_hook(hook, with_kwargs=with_kwargs, prepend=order == "prepended")

        if order == "before":
            register()
        features = pfb.Shallow(model, "a")
        pruner = pfb.BatchPruner(0.5, features=features, rule=lambda features: features[:, 0])
        if order != "before":
            register()
        for _ in range(3):
            x = self.mean + torch.randn(10, 6)
            kept_x = pruner(x, by={"x": x} if with_kwargs else x)
            out = model(x=kept_x) if with_kwargs else model(kept_x)
            kept = pruner.selection.indices
            hidden = model.a((x - self.mean) * self.scale)
            assert kept.tolist() == hidden[:, 0].topk(5).indices.sort().values.tolist()
            torch.testing.assert_close(out, model.b(hidden[kept].tanh()))

    def test_hooks_of_layers_before_the_cut_see_both_passes(self):
        """It cannot be told from outside which of the user's hooks want to see the scoring pass."""
        model, seen = zoo.SmallNet(), []
        model.stem.register_forward_hook(lambda module, args, output: seen.append(len(output)))
        pruner = pfb.BatchPruner(0.5, features=pfb.Shallow(model, "layer1"), rule=pfb.RareFirst())
        model(pruner(torch.randn(10, 3, 8, 8)))
        assert seen == [10, 5]


class TestWhatIsNotTakenBack:
    """The pass looks at the modules of the model, at all of them in its first passes."""

    def test_caches_outside_the_model(self):
        cache = []

        class Logs(Two):
            def forward(self, x):
                cache.append(len(x))
                return super().forward(x)

        model = Logs()
        pruner = pfb.BatchPruner(0.5, features=pfb.Shallow(model, "a"), rule=pfb.RareFirst())
        model(pruner(X))
        assert cache == [10, 5]

    def test_a_cache_of_a_module_that_fills_for_the_first_time_after_three_passes(self):
        class Late(Two):
            calls: int = 0
            log: tuple[int, ...] = ()

            def forward(self, x):
                if self.calls > 3:
                    self.log = (*self.log, len(x))
                return super().forward(x)

        model = Late()
        pruner = pfb.BatchPruner(0.5, features=pfb.Shallow(model, "a"), rule=pfb.RareFirst())
        for step in range(5):
            object.__setattr__(model, "calls", step)
            model(pruner(torch.randn(10, 6)))
        assert model.log == (10, 5)
