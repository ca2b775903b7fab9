"""The rules beside the paper's: what they are at their limits, and with which probability they keep
a sample.
"""

import pytest
import torch

import pfb
from pfb.lab.baselines import PerClass, Stratified, Tempered
from pfb.selection.selection import keep_largest


def estimator(rows):
    made = pfb.DensityEstimator(n_centers=len(rows))
    made.accumulate(rows)
    made.apply()
    return made


def kept_share(rule, x, known, k, draws=1000):
    torch.manual_seed(0)
    counts = torch.zeros(len(x))
    for _ in range(draws):
        counts[keep_largest(rule(x, known), k)] += 1
    return counts / draws


class TestTempered:
    x = torch.tensor([[0.0], [0.1], [0.2], [1.5], [4.0]])

    def known(self):
        return estimator(torch.linspace(-1, 1, 16)[:, None])

    def test_gamma_zero_is_uniform(self):
        share = kept_share(Tempered(0.0), self.x, self.known(), 2)
        assert (share - 0.4).abs().max() < 0.05

    def test_one_draw_follows_the_weights(self):
        known = self.known()
        log_density = known.log_density(self.x)
        z = (log_density - log_density.mean()) / log_density.std(correction=0)
        for gamma in (0.7, -0.7):
            expected = torch.softmax(-gamma * z, 0)
            share = kept_share(Tempered(gamma), self.x, known, 1)
            assert (share - expected).abs().max() < 0.05

    def test_large_gamma_is_rarest_first(self):
        known = self.known()
        strict = keep_largest(pfb.RareFirst(alpha=0.0)(self.x, known), 3)
        assert torch.equal(keep_largest(Tempered(1e6)(self.x, known), 3), strict)

    def test_before_there_are_centers_it_is_uniform(self):
        share = kept_share(Tempered(2.0), self.x, pfb.DensityEstimator(), 2)
        assert (share - 0.4).abs().max() < 0.05

    def test_bad_gamma(self):
        with pytest.raises(ValueError, match="`gamma`.*nan"):
            Tempered(float("nan"))


class TestStratified:
    centers = torch.tensor([[0.0], [10.0], [20.0], [30.0]])
    x = torch.cat([torch.zeros(24, 1), torch.full((20, 1), 10.0), torch.full((12, 1), 20.0), torch.full((8, 1), 30.0)])

    def test_every_sample_is_equally_likely(self):
        share = kept_share(Stratified(), self.x, estimator(self.centers), 32)
        assert (share - 0.5).abs().max() < 0.05

    @pytest.mark.parametrize("k", [13, 32, 51])
    def test_every_region_keeps_about_the_same_share(self, k):
        known = estimator(self.centers)
        region = known.nearest(self.x)
        torch.manual_seed(0)
        worst, of_uniform = 0.0, 0.0
        for _ in range(100):
            for rule, is_ours in ((Stratified(), True), (lambda x, e: torch.rand(len(x)), False)):
                kept = region[keep_largest(rule(self.x, known), k)].bincount(minlength=4)
                off = float((kept - region.bincount() * k / len(self.x)).abs().max())
                worst, of_uniform = (max(worst, off), of_uniform) if is_ours else (worst, max(of_uniform, off))
        assert worst < 2.0, "a low-discrepancy sequence is off by less than two samples here"
        assert of_uniform > 3.0, "chance is off by more, or this test could not fail"

    def test_before_there_are_centers(self):
        assert Stratified()(self.x, pfb.DensityEstimator()).shape == (64,)
        with pytest.raises(ValueError, match="no centers yet"):
            pfb.DensityEstimator().nearest(self.x)


class TestPerClass:
    def test_each_class_keeps_its_share_and_its_most_important(self):
        torch.manual_seed(0)
        labels = torch.arange(40) % 4  # ten of each
        features = torch.randn(40, 1) + 5.0 * labels[:, None]  # one class is far above the others
        rule = PerClass(lambda x: x[:, 0])
        rule.see(labels)
        kept = keep_largest(rule(features, None), 20)
        assert labels[kept].bincount().tolist() == [5, 5, 5, 5]
        for c in range(4):
            members = torch.nonzero(labels == c).flatten()
            best = members[features[members, 0].topk(5).indices]
            assert set(best.tolist()) == set(kept[labels[kept] == c].tolist())

    def test_of_uniform_every_sample_is_equally_likely(self):
        labels = torch.tensor([0] * 7 + [1] * 3)
        torch.manual_seed(0)
        counts = torch.zeros(10)
        rule = PerClass(pfb.Uniform())
        for _ in range(1000):
            rule.see(labels)
            kept = keep_largest(rule(torch.zeros(10, 2), None), 5)
            counts[kept] += 1
            assert 3 <= int((labels[kept] == 0).sum()) <= 4
        assert (counts / 1000 - 0.5).abs().max() < 0.05

    def test_mistakes(self):
        rule = PerClass()
        with pytest.raises(RuntimeError, match="importance.see"):
            rule(torch.zeros(4, 2), pfb.DensityEstimator())
        rule.see(torch.zeros(3, dtype=torch.int64))
        with pytest.raises(ValueError, match="3 labels for a batch of 4"):
            rule(torch.zeros(4, 2), pfb.DensityEstimator())
        with pytest.raises(ValueError, match="mixup"):
            rule.see(torch.rand(4, 10))

    def test_in_a_model(self):
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
        rule = PerClass()
        with pfb.attach(model, "0", 0.5, importance=rule) as blocker:
            y = torch.arange(20) % 2
            rule.see(y)
            model(torch.randn(20, 4))
            assert blocker.select(y).bincount().tolist() == [5, 5]
            with pytest.raises(RuntimeError, match=r"importance.see"):
                model(torch.randn(20, 4))
