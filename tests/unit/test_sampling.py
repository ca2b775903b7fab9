"""Draws with weights, and generators that depend on nothing but their numbers."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pfb.selection.sampling import drawn, generator_of, random_like

CPU = torch.device("cpu")


def test_the_first_of_a_draw_comes_in_proportion_to_its_weight():
    weights = torch.tensor([1.0, 2.0, 5.0])
    generator = torch.Generator().manual_seed(0)
    first = torch.stack([drawn(weights.log(), generator).argmax() for _ in range(4000)])
    shares = torch.bincount(first, minlength=3) / 4000
    torch.testing.assert_close(shares, weights / 8, atol=0.03, rtol=0)


def test_a_generator_leaves_the_global_stream_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    drawn(torch.zeros(5), generator_of(CPU, 1, 2, 3))
    random_like(torch.zeros(5), generator_of(CPU, 1, 2, 3))
    assert torch.equal(torch.rand(4), expected)


numbers = st.tuples(st.integers(-(2**40), 2**40), st.integers(0, 4096), st.integers(0, 64), st.integers(0, 2**31))


@given(numbers, numbers)
def test_equal_numbers_draw_alike_and_others_do_not(a, b):
    one, same, other = (torch.rand(8, generator=generator_of(CPU, *x)) for x in (a, a, b))
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (a == b)


def test_neighbouring_steps_are_independent():
    x = torch.stack([torch.rand(64, generator=generator_of(CPU, 0, 0, 0, step)) for step in range(512)])
    assert abs(float(x.mean()) - 0.5) < 0.01
    between = torch.corrcoef(torch.stack([x[:-1].flatten(), x[1:].flatten()]))[0, 1]
    assert abs(float(between)) < 0.02
