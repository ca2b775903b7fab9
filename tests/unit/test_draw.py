"""Draws with weights, and what the samples drawn count for."""

import pytest
import torch
from torch import nn

import pfb
from pfb.selection.sampling import Draw, drawn, inverse_probability
from pfb.selection.selection import keep_largest
from tests import zoo


def draw(log_weights, k):
    importance = drawn(log_weights)
    return Draw(log_weights, importance, keep_largest(importance, k))


def test_the_weighted_mean_of_the_drawn_is_that_of_all():
    torch.manual_seed(0)
    log_weights = torch.linspace(-1, 1, 24)
    values = 3 - log_weights
    draws = [draw(log_weights, 14) for _ in range(3000)]
    found = torch.stack([(d.weights(d.kept) * values[d.kept]).mean() for d in draws])
    plain = torch.stack([values[d.kept].mean() for d in draws])
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - values.mean()) < 4 * error
    assert abs(plain.mean() - values.mean()) > 8 * error, "without weights it is another mean"


def test_the_chance_is_that_of_the_draw():
    torch.manual_seed(0)
    log_weights, others = torch.tensor([-0.5, 0.0, 0.8]), torch.tensor([0.2, 1.1, -0.3])
    weights = inverse_probability(log_weights, others.index_fill(0, torch.tensor([1]), 9.0), torch.tensor([1]))
    above = (drawn(torch.zeros(50_000)) > 0.2).float().mean()
    torch.testing.assert_close(1 / 3 / weights[0], above.clamp_min(1 / 3), atol=0.01, rtol=0)


def test_all_kept_count_alike_broken_ones_too():
    everything = draw(torch.tensor([0.0, -9.0, torch.nan]), 3)
    assert everything.weights(everything.kept).tolist() == [1, 1, 1]
    broken = draw(torch.tensor([0.0, -1.0, torch.nan, 0.5]), 2)
    assert 2 in broken.kept
    assert broken.weights(torch.tensor([2])) == 0.5
    assert draw(torch.zeros(0), 0).weights(torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_no_weight_is_above_the_root_of_the_kept():
    log_weights = torch.tensor([0.0] * 31 + [-30.0])
    importance = drawn(log_weights).index_fill(0, torch.tensor([31]), 99.0)
    found = Draw(log_weights, importance, keep_largest(importance, 16))
    assert found.weights(torch.tensor([31])) == 4
    assert found.weights(found.kept)[:15].max() < 2


def test_copies_that_go_on_count_for_those_that_do_not(shallow):
    torch.manual_seed(1)
    model, image = zoo.SmallNet(), torch.randn(1, 3, 8, 8)
    blocker = pfb.attach(model, "layer1", 0.25, shallow=shallow)
    total = 0.0
    for step in range(40):
        x = torch.randn(20, 3, 8, 8)
        x[:8] = image + 0.01 * torch.randn(8, 3, 8, 8)
        model(x)
        weights, kept = blocker.weights, blocker.selection.indices
        blocker.step()
        if step >= 10:
            total += weights[kept < 8].sum() / 30
    torch.testing.assert_close(weights[kept >= 8], torch.full((12,), 0.75), atol=0.05, rtol=0)
    assert 5 < total < 6.5, "6, as eight would count among 15 of 20, less what is cut off"
    assert (kept < 8).sum() == 3


def test_a_view_counts_for_its_group(shallow):
    model = zoo.SmallNet()
    old = torch.randn(20, 3, 8, 8)
    for views in (pfb.Views(2), pfb.Views(2, interleaved=True)):
        again = views.groups(torch.arange(20), 20) < 4
        memory = pfb.NeighbourMemory(32)
        with pfb.attach(model, "layer1", 0.25, shallow=shallow, views=views, estimator=memory) as blocker:
            for _ in range(4):
                model(torch.where(again[:, None, None, None], old, torch.randn(20, 3, 8, 8)))
                weights = blocker.weights
                blocker.step()
        pairs = weights.view(-1, 2) if views.interleaved else weights.view(2, -1).T
        assert torch.equal(pairs[:, 0], pairs[:, 1])
        assert weights.unique().numel() > 1


def test_without_a_draw_there_are_no_weights(shallow):
    model, x = zoo.SmallNet(), torch.randn(20, 3, 8, 8)
    with pfb.attach(model, "layer1", 0.5, shallow=shallow, importance=pfb.Uniform()) as blocker:
        assert blocker.weights == 1, "no forward yet"
        model(x)
        assert blocker.weights.tolist() == [1] * 10
        with blocker.paused():
            model(x)
        assert blocker.weights == 1
    with pfb.attach(model, "layer1", 0.5, shallow=shallow, importance=pfb.RareFirst()) as blocker:
        model(x)
        with pytest.raises(ValueError, match=r"RareFirst does not draw by known weights, .*: use pfb.InverseDensity"):
            _ = blocker.weights


def test_a_rule_of_ones_own_may_draw():
    class Heavy:
        def log_weights(self, features):
            return features[:, 0].log()

        __call__ = log_weights

    model, x = zoo.mlp(4, 8, 3), torch.rand(12, 4)
    with pfb.attach(model, "0", 0.5, shallow="recompute", importance=Heavy(), features="sketch") as blocker:
        model(x)
        assert blocker.weights.shape == (6,)


def test_compiled_they_are_the_same():
    model, x = zoo.SmallNet(), torch.randn(20, 3, 8, 8)
    blocker = pfb.attach(model, "layer1", 0.5)
    model.compile(backend="eager")
    for _ in range(3):
        torch.manual_seed(3)
        loss = nn.functional.cross_entropy(model(x), blocker.select(torch.arange(20) % 5), reduction="none")
        (blocker.weights * loss).mean().backward()
        draw = blocker._gate._draw
        assert torch.equal(blocker.weights, inverse_probability(draw.log_weights, draw.importance, draw.kept))
        blocker.step()


def test_a_draw_by_own_views_comes_from_the_generator_given():
    torch.manual_seed(0)
    memory, x = pfb.NeighbourMemory(64), torch.randn(9, 4)
    memory.accumulate(torch.cat([x + 0.05, torch.randn(50, 4)]))
    memory.apply()
    rule, own, state = pfb.InverseDensity(), x + 0.01, torch.get_rng_state()
    first, again = (rule(x, memory, own, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert (rule.log_weights(x, memory, own) >= rule.log_weights(x, memory)).all()
    assert rule.log_weights(x, memory, own).sum() > rule.log_weights(x, memory).sum()
