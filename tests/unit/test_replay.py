"""Activation checkpointing runs a forward again: its decision is repeated, and counted once."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pfb
from pfb.blocking.replay import Replays
from tests import zoo


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_around_the_cut(use_reentrant):
    """The checkpointed part runs again in backward and must take the same decision, several
    forwards included.
    """
    model = zoo.Checkpointed(use_reentrant).double()
    plain = copy.deepcopy(model)
    blocker = pfb.attach(model, "block", 0.4, density=pfb.MovingCenters(4))
    for _ in range(3):
        model.zero_grad()
        plain.zero_grad()
        loss, expected = 0, 0
        for _ in range(2):  # two forwards before one backward
            # Reentrant checkpointing asks for an input with gradients; a leaf would be warned of.
            x, y = torch.randn(10, 6, dtype=torch.float64, requires_grad=True).clone(), torch.randint(3, (10,))
            loss = loss + nn.functional.cross_entropy(model(x), blocker.select(y))
            kept = blocker.selection.indices
            expected = expected + nn.functional.cross_entropy(plain(x[kept]), y[kept])
        with blocker.paused():  # one that nothing is pruned in
            loss = loss + model(x).square().mean()
            expected = expected + plain(x).square().mean()
        seen = 0 if blocker.density.counts is None else int(blocker.density.counts.sum())
        loss.backward()
        expected.backward()
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-11)
        blocker.step()
        if seen:
            assert int(blocker.density.counts.sum()) == seen + 12, "a replay must not count its samples again"


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_around_the_whole_model(use_reentrant):
    model = zoo.mlp(6, 8, 8, 3).double()
    plain = copy.deepcopy(model)
    blocker = pfb.attach(model, "1", 0.4)
    x = torch.randn(10, 6, dtype=torch.float64, requires_grad=True).clone()
    out = checkpoint(model, x, use_reentrant=use_reentrant)
    if use_reentrant:  # its first run is without gradients, so nothing was pruned
        assert out.shape == (10, 3)
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            out.sum().backward()
    else:
        out.square().sum().backward()
        plain(x[blocker.selection.indices]).square().sum().backward()
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    blocker.detach()


class TestDecisionsThatAreNotKnown:
    """Better an error than gradients of other samples."""

    def checkpointed(self, model, x):
        return checkpoint(model, x, use_reentrant=False)

    def test_a_step_before_backward(self):
        model = zoo.mlp(6, 8, 3)
        with pfb.attach(model, "1", 0.4) as blocker:
            out = self.checkpointed(model, torch.randn(10, 6))
            blocker.step()
            with pytest.raises(RuntimeError, match=r"only after `backward\(\)`"):
                out.sum().backward()

    def test_a_step_and_another_forward_before_backward(self):
        """The other forward's decision would fit in its shape."""
        model = zoo.mlp(6, 8, 3)
        with pfb.attach(model, "1", 0.4) as blocker:
            out = self.checkpointed(model, torch.randn(10, 6))
            blocker.step()
            model(torch.randn(10, 6))
            with pytest.raises(RuntimeError, match="none of those since the last step"):
                out.sum().backward()

    def test_rounding_is_no_other_batch(self):
        replays, features = Replays(), torch.rand(10, 8)
        replays.note(features, torch.arange(6))
        for other in (features, features + 1e-3 * torch.randn(10, 8), features.bfloat16().float()):
            assert replays.decision(other).tolist() == list(range(6))
        for n in (1, 2):
            replays.note(torch.rand(n, 8), None)
            assert replays.decision(replays._forwards[-1].features * (1 + 1e-4)) is None

    def test_broken_features_are_known_again(self):
        replays, features = Replays(), torch.rand(10, 8)
        features[3] = torch.nan
        replays.note(torch.rand(10, 8), None)
        replays.note(features, torch.arange(6))
        assert replays.decision(features.clone()).tolist() == list(range(6))


def test_one_batch_twice_under_checkpointing_keeps_one_decision():
    """SAM with activation checkpointing: gradients of both runs are those of the kept samples."""
    model = zoo.mlp(6, 8, 3).double()
    plain = copy.deepcopy(model)
    x = torch.randn(10, 6).double()
    with pfb.attach(model, "1", 0.4) as blocker:
        with blocker.decide_once():
            loss = sum(checkpoint(model, x, use_reentrant=False).square().sum() for _ in range(2))
        kept = blocker.selection.indices
        loss.backward()
        blocker.step()
    (2 * plain(x[kept]).square().sum()).backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_forwards_that_pass_whole_are_replayed_whole():
    """Paused, or with features that cannot be read, since nothing is asked of them."""
    model = zoo.mlp(6, 8, 3).double()
    plain = copy.deepcopy(model)
    x = torch.randn(10, 6).double()
    readers = (None, lambda output: output if len(output) == 20 else 1 / 0)
    for features in readers:
        model.zero_grad()
        plain.zero_grad()
        with pfb.attach(model, "1", 0.4, features=features) as blocker, blocker.paused():
            checkpoint(model, x, use_reentrant=False).square().sum().backward()
        plain(x).square().sum().backward()
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
