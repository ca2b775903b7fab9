"""Activation checkpointing runs a forward again: its decision is repeated, and counted once."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pfb
from tests import zoo


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_around_the_cut(use_reentrant, shallow):
    """The checkpointed part runs again in backward and must take the same decision, several
    forwards included.
    """
    model = zoo.Checkpointed(use_reentrant).double()
    plain = copy.deepcopy(model)
    blocker = pfb.attach(model, "block", 0.4, shallow=shallow, estimator=pfb.DensityEstimator(4))
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
        seen = 0 if blocker.estimator.counts is None else int(blocker.estimator.counts.sum())
        loss.backward()
        expected.backward()
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-11)
        blocker.step()
        if seen:
            assert int(blocker.estimator.counts.sum()) == seen + 12, "a replay must not count its samples again"


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_around_the_whole_model(use_reentrant, shallow):
    model = zoo.mlp(6, 8, 8, 3).double()
    plain = copy.deepcopy(model)
    blocker = pfb.attach(model, "1", 0.4, shallow=shallow)
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


def test_without_a_scoring_pass_a_replay_takes_its_own_forwards_decision():
    """Two checkpointed forwards, and backward through the first one first."""
    torch.manual_seed(0)
    model, plain = zoo.mlp(6, 8, 3).double(), zoo.mlp(6, 8, 3).double()
    plain.load_state_dict(model.state_dict())
    with pfb.attach(model, "0", 0.5, shallow="recompute", importance=pfb.Uniform()) as blocker:
        passes = []
        for x in torch.randn(2, 10, 6, dtype=torch.float64):
            out = checkpoint(model, x, use_reentrant=False)
            passes.append((out, plain(x[blocker.selection.indices])))
        for out, expected in passes:
            out.square().sum().backward()
            expected.square().sum().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
