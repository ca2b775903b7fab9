"""Each baseline against a case computed by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pfb
from pfb.lab.baselines import InfoBatch, Loop, OrderDP, Release, SelectiveBackprop


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_plain_method_trains_on_everything():
    method = Loop()
    assert method.load(0.5, generator()) is None
    assert method.choose(nn.Linear(2, 2), F.cross_entropy, torch.ones(4, 2), torch.zeros(4).long(), 0.5) is None
    assert method.reduce(torch.tensor([1.0, 3.0]), torch.tensor([0, 1])) == 2


class TestInfoBatch:
    # Mean loss 5: samples 0 to 3 lie below it, 4 and 5 above.
    losses = torch.tensor([1.0, 2.0, 2.0, 3.0, 10.0, 12.0])

    def trained(self):
        method = InfoBatch(6)
        assert method.load(0.5, generator()).tolist() == list(range(6)), "no loss is known yet, so nothing is skipped"
        assert method.reduce(self.losses[[3, 4, 5]], torch.tensor([3, 4, 5])) == pytest.approx(25 / 3)
        assert method.reduce(self.losses[[0, 1, 2]], torch.tensor([0, 1, 2])) == pytest.approx(5 / 3)
        return method

    def test_half_of_those_below_the_mean_are_skipped_and_the_others_weigh_double(self):
        seen = set()
        for seed in range(40):
            method = self.trained()
            loaded = method.load(0.5, generator(seed)).tolist()
            assert len(loaded) == len(set(loaded)) == 4
            assert {4, 5} <= set(loaded)
            seen.add(tuple(loaded))
            assert method.weights.tolist() == [2, 2, 2, 2, 1, 1]
        assert len(seen) == 6, "every pair of the four gets its turn"
        # Samples 1 (weight 2) and 4 (weight 1): (2 * 0.5 + 1 * 4) / 2.
        assert method.reduce(torch.tensor([0.5, 4.0]), torch.tensor([1, 4])) == pytest.approx(2.5)

    def test_the_share_is_taken_as_a_person_means_it(self):
        method = InfoBatch(101)
        method.reduce(torch.tensor([*[0.0] * 100, 9.0]), torch.arange(101))
        assert len(method.load(0.29, generator())) == 101 - 29

    def test_the_loss_keeps_its_expectation(self):
        totals = []
        for seed in range(400):
            method = self.trained()
            loaded = method.load(0.5, generator(seed))
            totals.append(float(method.reduce(self.losses[loaded], loaded)) * len(loaded))
        assert sum(totals) / len(totals) == pytest.approx(float(self.losses.sum()), rel=0.02)

    def test_the_last_part_runs_on_everything_unweighted(self):
        method = self.trained()
        method.load(0.5, generator())
        assert method.load(0.0, generator()) is None
        assert method.weights.tolist() == [1] * 6

    def test_state(self):
        method, other = self.trained(), InfoBatch(6)
        method.load(0.5, generator(3))
        other.load_state_dict(method.state_dict())
        assert torch.equal(other.load(0.5, generator(4)), method.load(0.5, generator(4)))


class TestOrderDP:
    def test_the_largest_losses_of_those_drawn(self):
        method = OrderDP(10, top=0.5)
        method.reduce(torch.arange(10.0), torch.arange(10))
        for seed in range(20):
            loaded = method.load(0.8, generator(seed))  # keeps 2 of 4 drawn
            drawn = torch.randperm(10, generator=generator(seed))[:4]
            assert sorted(loaded.tolist()) == sorted(drawn.tolist())[-2:]

    def test_the_share_is_exact_and_new_samples_come_first(self):
        method = OrderDP(100)
        method.reduce(torch.full((90,), 5.0), torch.arange(90))
        loaded = method.load(0.4, generator())
        assert len(loaded) == len(set(loaded.tolist())) == 60
        drawn = torch.randperm(100, generator=generator())[: round(60 / 0.85)]
        assert set(drawn[drawn >= 90].tolist()) <= set(loaded.tolist())

    @pytest.mark.parametrize(("share", "loaded"), [(0.1, 90), (0.29, 71)])  # 0.29 * 100 is 28.999999999999996
    def test_a_small_share_draws_all(self, share, loaded):
        assert len(OrderDP(100).load(share, generator())) == loaded
        assert OrderDP(100).load(0.0, generator()) is None


class TestSelectiveBackprop:
    def chosen(self, share, draws=2000):
        # The model is the identity on logits whose losses rise from sample 0 to sample 3.
        logits = torch.tensor([[4.0, 0.0], [2.0, 0.0], [0.0, 0.0], [-2.0, 0.0]])
        label = torch.zeros(4, dtype=torch.int64)
        torch.manual_seed(0)

        def losses(x, y):
            return F.cross_entropy(x, y, reduction="none")

        method = SelectiveBackprop()
        return [method.choose(nn.Identity(), losses, logits, label, share).tolist() for _ in range(draws)]

    def test_probabilities_by_hand(self):
        # keep 1/4 (at least 2 are kept): percentiles 1/8, 3/8, 5/8, 7/8, each to the power 1 / 0.25
        # - 1 = 3.
        weights = [(k / 8) ** 3 for k in (1, 3, 5, 7)]
        total = sum(weights)
        expected = sum(
            weights[a] / total * weights[b] / (total - weights[a]) for a, b in ((2, 3), (3, 2))
        )  # both of the largest two, without replacement
        draws = self.chosen(0.75)
        assert all(len(d) == 2 and d == sorted(d) for d in draws)
        share = sum(d == [2, 3] for d in draws) / len(draws)
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / len(draws)))

    def test_nothing_is_left_out_at_share_zero(self):
        assert SelectiveBackprop().choose(nn.Identity(), F.cross_entropy, torch.ones(2, 2), torch.zeros(2), 0.0) is None

    def test_the_scoring_forward_builds_no_graph(self):
        model = nn.Linear(3, 2)
        chosen = SelectiveBackprop().choose(
            model,
            nn.CrossEntropyLoss(reduction="none"),
            torch.randn(10, 3),
            torch.randint(2, (10,)),
            0.4,
        )
        assert chosen.shape == (6,)
        assert model.weight.grad is None


class TestRelease:
    def estimator(self, centers, variance):
        estimator = pfb.MovingCenters(n_centers=len(centers))
        estimator.accumulate(torch.tensor(centers))
        estimator.apply()
        estimator.variance.copy_(torch.tensor(variance))
        return estimator

    def test_score_by_hand(self):
        # Two centers in one dimension at -1 and 1, standard deviation 1: Silverman gives h = (4 /
        # (3 * 2)) ** (1 / 5), and the release takes h as the variance. The mean of the two log
        # kernels at x is -(x^2 + 1) / (2 h) + constant.
        estimator = self.estimator([[-1.0], [1.0]], [1.0])
        h = (4 / 6) ** 0.2
        x = torch.tensor([[0.0], [1.0], [3.0]])
        importance = Release(rterm=0.0)(x, estimator)
        by_hand = (x[:, 0] ** 2 + 1) / (2 * h) + 0.5 * math.log(2 * math.pi * h)
        torch.testing.assert_close(importance, by_hand)

    def test_it_is_one_gaussian_and_no_mixture(self):
        """A rare point between two modes counts as the densest: the trap that the paper's rule does
        not fall into.
        """
        torch.manual_seed(0)
        modes = torch.cat([torch.randn(32, 2) * 0.1 - 3, torch.randn(32, 2) * 0.1 + 3])
        estimator = pfb.MovingCenters(n_centers=64)
        estimator.accumulate(modes)
        estimator.apply()
        points = torch.tensor([[0.0, 0.0], [3.0, 3.0], [-3.0, -3.0]])
        assert Release(rterm=0.0)(points, estimator).argmin() == 0
        assert pfb.RareFirst(alpha=0.0)(points, estimator).argmax() == 0

    def test_noise_follows_the_score(self):
        torch.manual_seed(0)
        estimator = self.estimator([[-1.0], [1.0]], [1.0])
        x = torch.full((20_000, 1), 3.0)
        importance = Release(rterm=0.1)(x, estimator)
        assert float(importance.std()) == pytest.approx(0.1 * float(importance.mean().abs()), rel=0.05)

    def test_before_there_are_centers(self):
        assert Release()(torch.ones(5, 3), pfb.MovingCenters()).shape == (5,)
