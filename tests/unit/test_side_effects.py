"""The scoring pass is not seen from outside: what it writes is taken back, and it sees what the
forward proper sees.

Each model here is compared with a copy whose samples nobody scored, run on the kept ones.
"""

import copy
import inspect

import pytest
import torch
from torch import nn

import pfb


def pruned_call(model, pruner, *args, **kwargs):
    """The model's output for what a pruner keeps, judged by all that the model takes."""
    named = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return model(**pruner(dict(named), by=dict(named)))


def like_plain(model, *args, cut="a", steps=1, **kwargs):
    """Outputs, gradients and buffers equal those of a plain model on the kept samples; no argument
    is changed.
    """
    plain = copy.deepcopy(model)
    pruner = pfb.BatchPruner(0.5, features=pfb.Shallow(model, cut), rule=pfb.RareFirst())
    for _ in range(steps):
        given = copy.deepcopy((args, kwargs))
        model.zero_grad()
        plain.zero_grad()
        out = pruned_call(model, pruner, *given[0], **given[1])
        kept = pruner.selection.indices
        assert len(kept) == 5
        expected_args, expected_kwargs = pfb.Selection(kept, 10).select(copy.deepcopy(args), copy.deepcopy(kwargs))
        expected = plain(*expected_args, **expected_kwargs)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert p.grad is not None, f"{name} has no gradient"
            torch.testing.assert_close(p.grad, q.grad, msg=name)
        buffers = dict(plain.named_buffers())
        assert {name for name, _ in model.named_buffers()} == set(buffers)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffer, buffers[name], msg=name)
    return model, plain


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.a(x).tanh())


class Three(Two):
    """With a layer before the cut, whose output may be remembered."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)


X = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))


class TestInputs:
    class InPlace(Two):
        def forward(self, x):
            if isinstance(x, dict):
                return super().forward(x.pop("x").sub_(0.5).div_(0.25))
            return super().forward((x if isinstance(x, torch.Tensor) else x.x).sub_(0.5).div_(0.25))

    def test_normalised_in_place(self):
        like_plain(self.InPlace(), X, steps=5)

    def test_popped_from_a_dict(self):
        like_plain(self.InPlace(), {"x": X}, steps=5)

    def test_inside_a_class_of_the_users(self):
        from dataclasses import dataclass

        @dataclass
        class Batch:
            x: torch.Tensor

        like_plain(self.InPlace(), Batch(X), steps=5)

    def test_popped_from_a_tokenizers_batch(self):
        from transformers import BatchEncoding

        class Net(Two):
            def forward(self, batch):
                return super().forward(batch.pop("input_ids").float())

        like_plain(Net(), BatchEncoding({"input_ids": torch.arange(60).view(10, 6) / 60}), steps=5)

    def test_written_to_for_the_first_time_after_many_steps(self):
        class Later(Two):
            calls = 0

            def forward(self, x):
                self.calls += 1
                return super().forward(x.mul_(2) if self.calls > 5 else x)

        like_plain(Later(), X, steps=8)


class TestModules:
    @pytest.mark.parametrize("buffer", [False, True])
    def test_features_that_are_remembered_for_one_batch(self, buffer):
        class Memo(Three):
            memo: torch.Tensor | None

            def __init__(self):
                super().__init__()
                if buffer:
                    self.register_buffer("memo", None)
                else:
                    self.memo = None

            def forward(self, x):
                if self.memo is None:
                    self.memo = self.first(x)
                out = self.b(self.a(self.memo).tanh())
                self.memo = None  # not reached in the scoring pass, which ends at the cut
                return out

        like_plain(Memo(), X, steps=5)

    @pytest.mark.parametrize("kind", [dict, list, set])
    def test_caches_and_logs_in_containers(self, kind):
        class Cached(Three):
            def __init__(self):
                super().__init__()
                self.seen = kind()

            def forward(self, x):
                hidden = self.first(x)
                if kind is dict:
                    hidden = self.seen.setdefault("hidden", hidden)
                elif kind is list:
                    self.seen.append(len(x))
                else:
                    self.seen.add(len(x))
                return self.b(self.a(hidden).tanh())

        model, _ = like_plain(Cached(), X)
        assert len(model.seen) == 1
        assert kind is dict or list(model.seen) == [5], "not the whole batch of the scoring pass"

    def test_counters(self):
        class Counting(Two):
            calls: torch.Tensor

            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))
                self.register_buffer("total", None)
                self.steps = 0

            def forward(self, x):
                self.calls += 1
                self.steps += 1
                self.total = self.calls * 2
                return super().forward(x)

        model, plain = like_plain(Counting(), X, steps=5)
        assert (model.steps, plain.steps) == (5, 5)

    def test_buffers_that_appear_in_the_forward(self):
        class Appearing(Three):
            hidden: torch.Tensor

            def forward(self, x):
                if not hasattr(self, "hidden"):
                    self.register_buffer("hidden", self.first(x))
                return self.b(self.a(self.hidden).tanh())

        like_plain(Appearing(), X)

    def test_layers_that_start_from_their_first_batch(self):
        class ActNorm(nn.Module):
            def __init__(self):
                super().__init__()
                self.shift, self.started = nn.Parameter(torch.zeros(8)), False

            def forward(self, x):
                if not self.started:
                    self.shift.data.copy_(-x.detach().mean(0))
                    self.started = True
                return x + self.shift

        model = Two()
        model.a = nn.Sequential(nn.Linear(6, 8), ActNorm())
        like_plain(model, X, steps=2)

    def test_a_buffer_that_is_written_to_late_is_not_counted_twice(self):
        class Late(Two):
            calls: torch.Tensor

            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))
                self.on = False

            def forward(self, x):
                if self.on:
                    self.calls.add_(1)
                return super().forward(x)

        model = Late()
        features = pfb.Shallow(model, "a")
        for _ in range(4):
            features(torch.randn(10, 6))
        model.on = True
        features(X)
        assert model.calls == 0

    def test_a_failing_pass_is_undone_too(self):
        class Fails(Two):
            steps = 0

            def forward(self, x):
                self.steps += 1
                x.zero_()
                raise ArithmeticError("by the model")

        model, x = Fails(), X.clone()
        with pytest.raises(ArithmeticError) as failed:
            pfb.Shallow(model, "a")(x)
        assert model.steps == 0
        assert torch.equal(x, X)
        assert "this is the scoring pass of pfb.Shallow: Fails on the whole batch" in failed.value.__notes__[0]

    def test_lazy_layers_are_made_by_the_first_pass(self):
        class Lazy(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d())
                self.b = nn.LazyLinear(3)

            def forward(self, x):
                return self.b(self.a(x).mean((2, 3)))

        model = Lazy()
        pruner = pfb.BatchPruner(0.5, features=pfb.Shallow(model, "a", channel_dim=1), rule=pfb.RareFirst())
        for step in range(3):
            assert len(model(pruner(torch.randn(10, 3, 8, 8)))) == 5
            assert int(model.a[1].num_batches_tracked) == step + 1

    def test_random_numbers(self):
        class Noisy(Two):
            def forward(self, x):
                return super().forward(x + torch.randn_like(x))

        features = pfb.Shallow(Noisy(), "a")
        torch.manual_seed(0)
        features(X)
        drawn = torch.rand(3)
        torch.manual_seed(0)
        assert torch.equal(drawn, torch.rand(3))
