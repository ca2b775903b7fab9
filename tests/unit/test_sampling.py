"""Draws with weights, and what the samples drawn count for."""

import torch

from pfb.selection.sampling import Draw, drawn, inverse_probability
from pfb.selection.selection import keep_largest


def draw(log_weights, k):
    importance = drawn(log_weights)
    return Draw(log_weights, importance, keep_largest(importance, k))


def test_the_chance_is_that_of_the_draw():
    torch.manual_seed(0)
    log_weights, others = torch.tensor([-0.5, 0.0, 0.8]), torch.tensor([0.2, 1.1, -0.3])
    weights = inverse_probability(log_weights, others.index_fill(0, torch.tensor([1]), 9.0), torch.tensor([1]))
    above = (drawn(torch.zeros(50_000)) > 0.2).float().mean()
    torch.testing.assert_close(1 / 3 / weights[0], above.clamp_min(1 / 3), atol=0.01, rtol=0)
