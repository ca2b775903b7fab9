"""The fast density against the literal one, and its properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfb.density.kernels import log_density, log_importance, log_kernels, silverman_bandwidth
from tests import reference

seeds = st.integers(0, 2**31 - 1)


def random_case(seed: int, n: int = 12, c: int = 5, d: int = 4, scale: float = 1.0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g) * scale
    centers = torch.randn(c, d, generator=g) * scale
    weights = torch.rand(c, generator=g)
    bandwidth = (0.2 + torch.rand(d, generator=g)) * scale
    return x, centers, weights / weights.sum(), bandwidth


@given(seed=seeds, n=st.integers(1, 20), c=st.integers(1, 9), d=st.integers(1, 8))
def test_matches_the_literal_sum_of_kernels(seed, n, c, d):
    case = random_case(seed, n, c, d)
    torch.testing.assert_close(log_density(*case).double(), reference.log_density(*case), rtol=1e-4, atol=1e-3)


def test_matches_in_128_dimensions_where_densities_underflow():
    case = random_case(0, n=6, c=64, d=128)
    expected = reference.log_density(*case)
    assert (expected < -150).any(), "the case must lie where exp underflows in float32"
    torch.testing.assert_close(log_density(*case).double(), expected, rtol=1e-4, atol=1e-2)


@given(seed=seeds, offset=st.floats(-1e3, 1e3))
def test_translation_changes_nothing(seed, offset):
    x, centers, weights, bandwidth = random_case(seed)
    moved = log_density(x + offset, centers + offset, weights, bandwidth)
    torch.testing.assert_close(moved, log_density(x, centers, weights, bandwidth), rtol=1e-2, atol=2e-2)


@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_scale_shifts_all_log_densities_alike(seed, scale):
    x, centers, weights, bandwidth = random_case(seed)
    scaled = log_density(x * scale, centers * scale, weights, bandwidth * scale)
    expected = log_density(x, centers, weights, bandwidth) - x.size(1) * math.log(scale)
    torch.testing.assert_close(scaled, expected, rtol=1e-3, atol=1e-3)


@given(seed=seeds)
def test_permutations_of_samples_and_centers(seed):
    x, centers, weights, bandwidth = random_case(seed)
    order, center_order = torch.randperm(len(x)), torch.randperm(len(centers))
    permuted = log_density(x[order], centers[center_order], weights[center_order], bandwidth)
    torch.testing.assert_close(permuted, log_density(x, centers, weights, bandwidth)[order], rtol=1e-4, atol=1e-4)


def test_integrates_to_the_mean_weight_in_one_dimension():
    centers = torch.tensor([[-1.0], [2.0]])
    x = torch.linspace(-12, 14, 4001)[:, None]
    f = log_density(x, centers, torch.tensor([0.25, 0.75]), torch.tensor([0.7])).exp()
    assert float(f.sum() * (x[1] - x[0])) == pytest.approx(1 / 2, rel=1e-4)  # sum_j w_j / C with C = 2


def test_a_center_without_weight_does_not_count():
    x, centers, _, bandwidth = random_case(3)
    weights = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0])
    expected = log_density(x, centers[:2], weights[:2], bandwidth) + math.log(2 / 5)
    torch.testing.assert_close(log_density(x, centers, weights, bandwidth), expected)


def test_silverman_is_a_standard_deviation_and_enters_squared():
    std = torch.tensor([2.0, 0.5])
    h = silverman_bandwidth(std, n=64)
    assert h.tolist() == pytest.approx(reference.silverman([2.0, 0.5], 64))
    center = torch.zeros(1, 2)
    drop = log_kernels(center, center, h) - log_kernels(h[None], center, h)
    assert float(drop) == pytest.approx(1.0)  # one h away in both dimensions: half a nat each


def test_importance_is_the_papers_in_log_space():
    log_f = torch.tensor([-1.0, -2.0, -8.0], dtype=torch.float64)
    alpha = torch.tensor([0.01, 0.002, 0.0], dtype=torch.float64)
    f = log_f.exp()
    expected = 1 / (f + alpha * f.max())
    torch.testing.assert_close(log_importance(log_f, alpha).exp(), expected)


def test_importance_survives_densities_beyond_float_range():
    log_f = torch.tensor([-2000.0, -1000.0, 3000.0])
    importance = log_importance(log_f, torch.zeros(3))
    assert importance.tolist() == [2000.0, 1000.0, -3000.0]


@given(st.floats(-500, 500))
def test_the_random_term_does_not_depend_on_the_features_scale(shift):
    """Scaling the features shifts all log densities by one constant; the ranking with the same
    draws must stay.
    """
    g = torch.Generator().manual_seed(1)
    log_f = torch.randn(50, generator=g, dtype=torch.float64) * 4
    alpha = torch.rand(50, generator=g, dtype=torch.float64) * 0.01
    shifted = log_importance(log_f + shift, alpha)
    assert torch.equal(log_importance(log_f, alpha).argsort(), shifted.argsort())


def test_nan_spoils_only_its_own_sample():
    importance = log_importance(torch.tensor([-1.0, math.nan, -3.0]), torch.full((3,), 0.005))
    assert importance.isnan().tolist() == [False, True, False]
