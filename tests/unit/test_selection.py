"""How many are kept, and which."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfb.selection.selection import Selection, batch_size_for, keep_count, keep_largest


@given(n=st.integers(0, 5000), hundredths=st.integers(0, 99))
def test_keep_count_is_exact_in_decimals(n, hundredths):
    exact = n - math.floor(Fraction(hundredths, 100) * n)
    assert keep_count(n, hundredths / 100) == max(exact, min(2, n))


def test_the_floor_is_a_persons():
    assert int(0.29 * 100) == 28, "the trap this test is about"
    assert keep_count(100, 0.29) == 71
    assert keep_count(10, 1 - 0.9) == 9  # 0.09999999999999998
    assert keep_count(128, 0.4) == 77


@given(n=st.integers(0, 5000), denominator=st.integers(2, 60), data=st.data())
def test_keep_count_is_exact_in_fractions(n, denominator, data):
    """1/3 of 96 is 32, although twelve digits of 1/3 are a little less."""
    numerator = data.draw(st.integers(0, denominator - 1))
    exact = n - numerator * n // denominator
    assert keep_count(n, numerator / denominator) == max(exact, min(2, n))


def test_thirds_and_their_like_are_a_persons_too():
    assert [keep_count(n, share) for n, share in ((96, 1 / 3), (98, 1 / 7), (13, 3 / 13), (96, 2 / 3))] == [
        64,
        84,
        10,
        32,
    ]


@pytest.mark.parametrize(("n", "kept"), [(0, 0), (1, 1), (2, 2), (3, 2), (20, 2)])
def test_at_least_two_go_on(n, kept):
    assert keep_count(n, 0.95) == kept


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.data())
def test_the_largest_are_kept_in_batch_order(values, data):
    k = data.draw(st.integers(1, len(values)))
    kept = keep_largest(torch.tensor(values, dtype=torch.float64), k)
    assert kept.dtype == torch.int64
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert sorted(values[i] for i in kept.tolist()) == sorted(values)[len(values) - k :]


def test_nan_is_kept():
    assert 2 in keep_largest(torch.tensor([9.0, 8.0, math.nan, 7.0]), 2)


def test_selection_of_trees_and_lists():
    selection = Selection(torch.tensor([0, 2]), 3)
    a, b = selection.select(torch.arange(3), {"x": torch.arange(3)})
    assert a.tolist() == b["x"].tolist() == [0, 2]
    with pytest.raises(ValueError, match="`batch 1`"):
        selection.select(torch.arange(3), torch.arange(4))


@given(st.integers(1, 2000), st.sampled_from([0.0, 0.1, 0.29, 0.3, 0.4, 0.5, 0.7, 0.9, 0.99]))
def test_the_batch_that_fills_the_deep_layers_is_the_largest_that_fits(kept, prune):
    n = batch_size_for(kept, prune)
    assert keep_count(n, prune) == kept
    assert keep_count(n + 1, prune) > kept


@pytest.mark.parametrize(("kept", "prune"), [(0, 0.4), (4, 1.0), (4, -0.1)])
def test_no_batch_fills_an_impossible_demand(kept, prune):
    with pytest.raises(ValueError, match="kept"):
        batch_size_for(kept, prune)
