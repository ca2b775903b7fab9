"""The scoring pass sees what the forward proper sees, and what of it cannot be taken back."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import pfb
from tests import zoo
from tests.unit.test_trace import Two, X, like_plain


class TestWhatEvaluationAndNoGradSwitchOn:
    def test_cached_parametrizations(self):
        class Symmetric(nn.Module):
            def forward(self, x):
                return x.triu() + x.triu(1).mT

        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
        for layer in (model[0], model[2]):
            parametrize.register_parametrization(layer, "weight", Symmetric())
        plain = copy.deepcopy(model)
        with pfb.attach(model, "1", 0.5, shallow="recompute") as blocker, parametrize.cached():
            model(X.double()).square().sum().backward()
            assert parametrize._cache_enabled == 1, "as it was"
            kept = blocker.selection.indices
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
        with pfb.attach(model, "a", 0.5, shallow="recompute") as blocker:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
                loss = nn.functional.cross_entropy(model(X).float(), blocker.select(torch.randint(3, (10,))))
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
        with pfb.attach(model, "a", 0.5, shallow="recompute", rule=lambda features: features[:, 0]) as blocker:
            if order != "before":
                register()
            for _ in range(3):
                x = self.mean + torch.randn(10, 6)
                out = model(x=x) if with_kwargs else model(x)
                kept = blocker.selection.indices
                features = model.a((x - self.mean) * self.scale)
                assert kept.tolist() == features[:, 0].topk(5).indices.sort().values.tolist()
                torch.testing.assert_close(out, model.b(features[kept].tanh()))
                blocker.step()

    def test_a_late_hook_that_returns_one_tensor_or_nothing(self):
        model, seen = Two(), []
        with pfb.attach(model, "a", 0.5, shallow="recompute") as blocker:
            model.register_forward_pre_hook(lambda module, args: args[0] * 2)
            model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
            out = model(X)
            torch.testing.assert_close(out, model.b(model.a(2 * X[blocker.selection.indices]).tanh()))

    def test_a_hook_that_asks_for_kept_samples_stays_behind_when_another_comes_late(self):
        """As an adapter's does, which counts the labels that the model is about to see."""

        class Counts:
            sees_kept_samples = True

            def __call__(self, module, args):
                seen.append(len(args[0]))

        model, seen = Two(), []
        with pfb.attach(model, "a", 0.5, shallow="recompute"):
            model.register_forward_pre_hook(Counts())
            model.register_forward_pre_hook(lambda module, args: args[0] * 2)
            for _ in range(3):
                model(X.clone())
        assert seen == [5, 5, 5]

    def test_hooks_of_layers_before_the_cut_see_both_passes(self):
        """It cannot be told from outside which of the user's hooks want to see the scoring pass."""
        model, seen = zoo.SmallNet(), []
        model.stem.register_forward_hook(lambda module, args, output: seen.append(len(output)))
        with pfb.attach(model, "layer1", 0.5, shallow="recompute", rule=pfb.RareFirst()):
            model(torch.randn(10, 3, 8, 8))
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
        with pfb.attach(model, "a", 0.5, shallow="recompute", rule=pfb.RareFirst()):
            model(X)
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
        with pfb.attach(model, "a", 0.5, shallow="recompute", rule=pfb.RareFirst()) as blocker:
            for step in range(5):
                object.__setattr__(model, "calls", step)
                model(torch.randn(10, 6))
                blocker.step()
        assert model.log == (10, 5)
