"""Situations inside a model, for attach and for the scoring pass of Shallow: each was tried by hand
first, and went wrong.
"""

import warnings
from collections import Counter, defaultdict, deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pfb


def two_layers(width=8):
    return nn.Sequential(nn.Linear(5, width), nn.Linear(width, 3))


def shallow(model, cut=None, rule=None):
    return pfb.BatchPruner(0.5, features=pfb.Shallow(model, cut), rule=pfb.RareFirst() if rule is None else rule)


def bert():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    )


class TestTheScoringPassRegistersHooks:
    """A forward may register hooks when it first needs them, and note in an attribute that it
    did.
    """

    def test_layers_are_recorded_once(self):
        """transformers records hidden states so; the note was taken back, the hooks were not."""
        model = bert()
        pruner = shallow(model)
        for _ in range(4):
            kept = pruner({"input_ids": torch.randint(50, (8, 6))})
            states = model(**kept, output_hidden_states=True).hidden_states
            assert [len(state) for state in states] == [4] * 4  # embeddings and three layers

    def test_hooks_of_the_pass_go_with_it(self):
        class Recorder(nn.Module):
            def __init__(self):
                super().__init__()
                self.net, self.ready, self.seen = two_layers(), False, []

            def forward(self, x):
                if not self.ready:
                    self.net[0].register_forward_hook(lambda m, args, out: self.seen.append(len(out)))
                    self.ready = True
                return self.net(x)

        model = Recorder()
        pruner = shallow(model, "net.0")
        for _ in range(5):
            model(pruner(torch.randn(8, 5)))
        assert model.seen == [4] * 5


class LayerDrop(nn.Module):
    """Leaves its first layer out of every third forward, in training only."""

    def __init__(self):
        super().__init__()
        self.first, self.head, self.runs = nn.Linear(5, 5), nn.Linear(5, 3), 0

    def forward(self, x):
        self.runs += self.training
        return self.head(x if self.training and self.runs % 3 == 1 else self.first(x))


class TestACutThatTheForwardLeavesOut:
    """wav2vec 2.0 drops layers at random: its runs ended after some ten steps with "no forward
    reached the cut".
    """

    @pytest.fixture(autouse=True)
    def _nothing_was_compiled(self, monkeypatch):
        """By other tests; after that, code without hooks is suspected first."""
        monkeypatch.setattr(torch._dynamo.utils, "counters", defaultdict(Counter))

    def test_all_samples_train_in_that_step_and_it_is_told_once(self):
        model = LayerDrop()
        blocker = pfb.attach(model, "first", 0.5)
        kept = []
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(6):
                logits = model(torch.randn(8, 5))
                F.cross_entropy(logits, blocker.select(torch.randint(3, (8,)))).backward()
                kept.append(len(logits))
                blocker.step()
        assert kept == [8, 4, 4, 8, 4, 4]
        assert [str(w.message) for w in told if "the cut did not run in it" in str(w.message)] == [str(told[0].message)]

    @pytest.mark.parametrize("rule", [pfb.RareFirst(), pfb.Uniform()])
    def test_before_the_model_all_batches_are_pruned(self, rule):
        model = LayerDrop()
        pruner = shallow(model, "first", rule)
        for _ in range(6):
            assert len(model(pruner(torch.randn(8, 5)))) == 4


class TestWhatTheScoringPassWritesIntoContainers:
    def test_queues_counters_and_nested_lists_hold_each_step_once(self):
        class Logger(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = two_layers()
                self.queue, self.count, self.log = deque(), Counter(), {"batches": []}

            def forward(self, x):
                self.queue.append(len(x))
                self.count["forwards"] += 1
                self.log["batches"].append(len(x))
                return self.net(x)

        model = Logger()
        pruner = shallow(model, "net.0")
        for _ in range(5):
            model(pruner(torch.randn(8, 5)))
        assert model.queue == deque([4] * 5)
        assert model.count == {"forwards": 5}
        assert model.log == {"batches": [4] * 5}


class TestARuleWithSettingsOfItsOwn:
    """A setting with a default was given the density, which counts as true."""

    def test_a_flag_keeps_its_default(self):
        def largest(features, smallest=False):
            norm = features.norm(dim=1)
            return -norm if smallest else norm

        model = nn.Sequential(nn.Identity(), nn.Linear(5, 2))
        blocker = pfb.attach(model, "0", 0.5, rule=largest)
        model(torch.arange(8.0)[:, None].expand(8, 5))
        assert blocker.selection.indices.tolist() == [4, 5, 6, 7]

    def test_an_optional_density_is_still_given(self):
        given = []

        def rule(features, density=None):
            given.append(density)
            return features[:, 0]

        model = two_layers()
        blocker = pfb.attach(model, "0", 0.5, rule=rule)
        model(torch.randn(8, 5))
        assert given == [blocker.density]


class TestSchedulesAndNumbersFromElsewhere:
    @pytest.mark.parametrize("wrong", [{"prune": 1.5}, {"prune": -0.2}, {"prune": 0.5, "ramp": (0.1, 7.0)}])
    def test_a_schedule_made_by_hand_is_checked(self, wrong):
        """A share of 1.5 stopped all but two samples, one of -0.2 none."""
        with pytest.raises(ValueError, match=r"must be the share of samples to stop, a number in \[0, 1\)"):
            pfb.Schedule(**wrong)

    @pytest.mark.parametrize("wrong", [{"start": 0.9, "stop": 0.1}, {"start": -1}, {"stop": 90}])
    def test_so_is_its_window(self, wrong):
        with pytest.raises(ValueError, match="0 <= start < stop <= 1"):
            pfb.Schedule(0.5, **wrong)

    def test_numbers_of_numpy_are_numbers(self):
        model = two_layers()
        with pfb.attach(model, "0", np.float32(0.5), total_steps=np.int64(10)) as blocker:
            assert len(model(torch.randn(8, 5))) == 4
            assert type(blocker.prune) is float
            assert type(blocker.total_steps) is int


class TestWhatErrorsSay:
    def test_a_batch_of_one_is_not_said_to_have_lost_samples(self):
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        with (
            pfb.attach(model, "0", 0.5),
            pytest.raises(ValueError, match="more than 1 value per channel") as raised,
        ):
            model(torch.randn(1, 5))
        assert not hasattr(raised.value, "__notes__")


class TestBatchesTooSmallToBePruned:
    """Language models are tuned with micro-batches of one or two, of which nothing can be
    stopped.
    """

    @pytest.mark.parametrize("size", [1, 2])
    def test_it_is_told_once(self, size):
        model = two_layers()
        blocker = pfb.attach(model, "0", 0.4)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(30):
                assert len(model(torch.randn(size, 5))) == size
                blocker.step()
        assert [f"too small to be pruned, the last of {size}" in str(w.message) for w in told] == [True]

    def test_small_last_batches_are_no_reason(self):
        model = two_layers()
        with pfb.attach(model, "0", 0.4) as blocker:
            for size in (8, 8, 1) * 15:
                blocker.select(model(torch.randn(size, 5)).new_zeros(size))
                blocker.step()
