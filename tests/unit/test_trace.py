"""What the scoring pass writes is taken back, and what the forward proper sees, it sees."""

import torch
from torch import nn

import pfb
from tests import zoo


def test_autocast_does_not_lose_the_shallow_gradients():
    """Weights cast in the scoring pass, without graph, must not be served to the forward proper
    from autocast's cache.
    """
    model = zoo.mlp(6, 16, 16, 3)
    with pfb.attach(model, "1", 0.4, shallow="recompute") as blocker:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(torch.randn(10, 6)), blocker.select(torch.randint(3, (10,))))
        loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
