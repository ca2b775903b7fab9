"""Situations a user meets that no reading of the code suggested: each was tried by hand first, and
went wrong.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pfb


def two_layers(width=8):
    return nn.Sequential(nn.Linear(5, width), nn.Linear(width, 3))


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
        with pfb.attach(model, prune=0.5, shallow="recompute") as blocker:
            for _ in range(4):
                states = model(input_ids=torch.randint(50, (8, 6)), output_hidden_states=True).hidden_states
                assert [len(state) for state in states] == [4] * 4  # embeddings and three layers
                blocker.step()

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
        with pfb.attach(model, "net.0", 0.5, shallow="recompute") as blocker:
            for _ in range(5):
                model(torch.randn(8, 5))
                blocker.step()
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

    @pytest.mark.parametrize("importance", [pfb.RareFirst(), pfb.Uniform()])
    def test_recompute_prunes_all_the_same(self, importance):
        model = LayerDrop()
        blocker = pfb.attach(model, "first", 0.5, shallow="recompute", importance=importance)
        for _ in range(6):
            assert len(model(torch.randn(8, 5))) == 4
            blocker.step()
