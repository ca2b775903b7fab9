"""Own views of every kind of input: small changes, from the generator given."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfb.features import own_views
from pfb.features.sketch import Sketch


def pictures(n, *sides):
    return torch.nn.functional.interpolate(torch.rand(n, 3, 6, 6), sides, mode="bicubic").clamp(0, 1)


KINDS = {
    "images": lambda: pictures(64, 32, 32),
    "volumes": lambda: torch.nn.functional.interpolate(torch.rand(64, 3, 2, 6, 6), (4, 32, 32)),
    "channels last": lambda: (255 * pictures(64, 20, 20)).to(torch.uint8).permute(0, 2, 3, 1),
    "list": lambda: [pictures(1, 20 + i % 8, 30)[0] for i in range(32)],
    "tokens": lambda: torch.randint(1000, (64, 40)),
    "sequences": lambda: torch.randn(64, 50, 3).cumsum(1),
    "vectors": lambda: torch.randn(64, 20) * torch.logspace(-3, 5, 20),
    "wide vectors": lambda: torch.randn(64, 600),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_is_nearer_than_another_sample_and_the_generator_decides_it(kind):
    torch.manual_seed(0)
    x, sketch = KINDS[kind](), Sketch()
    before, features = torch.get_rng_state(), sketch(x)
    first, again, other = (sketch.own_view(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == features.shape
    deviation = features.std(0).clamp_min(1e-9)
    moved = ((first - features) / deviation).norm(dim=1)
    apart = ((features - features.roll(1, 0)) / deviation).norm(dim=1)
    assert (moved < 0.7 * apart).float().mean() > 0.9
    assert moved.min() > 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31))
def test_views_of_any_size_are_finite(n, channels, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(n, channels, height, width, generator=generator)
    view = own_views.of_images(image, generator)
    assert view.shape == image.shape
    assert view.isfinite().all()
    tokens = torch.randint(9, (n, width), generator=generator)
    changed = own_views.of_tokens(tokens, generator)
    assert ((changed != tokens).sum(1) <= -(-width // 10)).all()
    rows = own_views.of_vectors(image.flatten(1), generator)
    assert rows.shape == (n, channels * height * width)


def test_padding_stays_padding():
    tokens = torch.cat([torch.randint(1, 99, (50, 30)), torch.zeros(50, 60, dtype=torch.long)], 1)
    assert (own_views.of_tokens(tokens)[:, 31:] == 0).all()
    x = torch.cat([torch.randn(8, 20, 2), torch.zeros(8, 30, 2)], 1)
    view = own_views.of_sequences(x)
    assert (view[:, 21:] == view[:, 20:-1]).all()


def test_a_shift_goes_to_all_corners_and_reflects():
    x = torch.arange(32.0).expand(200, 1, 32, 32).clone()
    view = own_views.of_images(x, torch.Generator().manual_seed(0))
    left = (view[:, 0, 8, 20] - view[:, 0, 8, 10]) / 10
    assert (left - 1).abs().max() < 0.031  # contrast alone
    ends = view[:, 0, 0]
    assert ((ends[:, 2] < ends[:, 1]) | (ends[:, -3] > ends[:, -2])).all()


def test_single_rows_of_a_batch_stay():
    x = torch.randn(1, 7)
    assert torch.equal(own_views.of_vectors(x), x)
    assert own_views.of_tokens(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0)
