"""Fixed features of the model's input."""

import pytest
import torch

import pfb
from pfb.features.cut import _drawn, fixed_normal
from pfb.features.sketch import Sketch
from tests import reference


@pytest.mark.parametrize("sides", [(7, 5), (33, 6)])
def test_images_equal_the_literal_form(sides):
    images = torch.randn(2, 2, *sides) * 3 + 1
    filters = fixed_normal(16, 2, 3, 3, device=torch.device("cpu"))
    expected = torch.stack([reference.sketch_of_image(image, filters) for image in images])
    torch.testing.assert_close(Sketch()(images).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("features", [1, 3])
def test_sequences_equal_the_literal_form(features):
    x = torch.randn(3, 12, features) * 2 + 1
    x[1, 4:7] = x[1, 3]
    x[2, 8:] = 0.0
    cpu = torch.device("cpu")
    projection, filters = fixed_normal(features, 8, device=cpu), fixed_normal(16, features, 5, device=cpu)
    expected = torch.stack([reference.sketch_of_sequence(row, projection, filters) for row in x])
    torch.testing.assert_close(Sketch()(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_tokens_equal_the_literal_form():
    tokens = torch.randint(0, 50_000, (3, 30))
    tokens[1, 10:15] = 7
    expected = torch.stack([reference.sketch_of_tokens(row) for row in tokens.tolist()])
    torch.testing.assert_close(Sketch()(tokens).double(), expected)


def test_the_filters_are_the_same_everywhere_and_leave_the_global_generator_alone():
    x, state = torch.randn(4, 3, 16, 16), torch.get_rng_state()
    first = Sketch()(x)
    torch.manual_seed(5)
    _drawn.cache_clear()
    with torch.device("meta"):
        assert torch.equal(Sketch()(x), first)
    _drawn.cache_clear()
    torch.set_rng_state(state)
    assert torch.equal(Sketch()(x), first)
    assert torch.equal(torch.get_rng_state(), state)
    expected = torch.tensor([1.5410, -0.2934, -2.1788])  # of torch's generator at seed 0
    torch.testing.assert_close(fixed_normal(3, device=torch.device("cpu")), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_offset_and_scale_of_all_inputs_change_no_standardized_feature(scale):
    x = torch.rand(64, 3, 12, 12, dtype=torch.float64)

    def standardized(images):
        f = Sketch()(images).double()
        return (f - f.mean(0)) / f.std(0)

    torch.testing.assert_close(standardized(scale * (x + 0.5)), standardized(x), rtol=1e-2, atol=1e-2)


def test_a_blank_image_is_a_finite_feature():
    x = torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), 7.3), torch.rand(3, 8, 8)])
    features = Sketch()(x)
    assert features.isfinite().all()
    assert features[1, 6:].abs().max() < 0.1


def test_a_broken_image_shows_in_its_own_features_only():
    x = torch.randn(3, 3, 8, 8)
    x[1, 0, 0, 0] = torch.nan
    assert Sketch()(x).isnan().any(1).tolist() == [False, True, False]


def test_padding_of_tokens_tells_nothing():
    text = torch.randint(1, 500, (1, 200))
    padded = torch.cat([text, torch.zeros(1, 300, dtype=torch.long)], 1)
    sketch = Sketch()
    same, other = sketch(text) - sketch(padded), sketch(text) - sketch(torch.randint(1, 500, (1, 200)))
    assert same.norm() < 0.2 * other.norm()
    assert torch.equal(sketch(padded), sketch(padded[:, :300]))


def test_short_and_long_inputs_of_every_kind():
    sketch = Sketch()
    assert sketch(torch.randint(9, (2, 1))).shape == (2, 256)
    assert sketch(torch.randn(2, 1, 1, 1)).shape == (2, 34)
    assert sketch(torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)).shape == (2, 38)
    assert sketch(torch.randn(2, 3, 224, 100)).shape == (2, 38)
    assert sketch(torch.randn(2, 3, 4, 40, 40)).shape == (2, 38)
    assert sketch(torch.randn(2, 9, 700).half()).shape == (2, 48)
    assert torch.equal(sketch(x := torch.randn(2, 5)), x)
    assert sketch(torch.randn(2, 500)).shape == (2, 256)
    assert sketch(torch.randn(0, 3, 8, 8)).shape == (0, 38)


def test_a_list_of_images_of_several_sizes():
    images = [torch.rand(3, 40, 50), torch.rand(3, 64, 48)]
    seen = Sketch()(images)
    assert seen.shape == (2, 38)
    torch.testing.assert_close(seen[1], Sketch()(images[1][None])[0])


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(3),
        torch.rand(3, 2) > 0.5,
        torch.randn(2, 2, dtype=torch.complex64),
        [torch.randn(4)],
        [torch.randn(9, 8, 8)] * 2,
    ],
)
def test_other_inputs_are_refused_with_the_way_out(x):
    with pytest.raises(TypeError, match="Pass `by="):
        Sketch()(x)


def test_images_of_noise_pass_for_copies_of_each_other():
    """A sketch reads means and deviations, which noise has always the same: known, and told in
    redundancy.md.
    """
    torch.manual_seed(0)

    def pictures(n):
        return torch.nn.functional.interpolate(torch.rand(n, 3, 4, 4), size=32, mode="bilinear")

    memory, sketch = pfb.NeighbourMemory(500), Sketch()
    memory.accumulate(sketch(torch.cat([pictures(450), torch.rand(50, 3, 32, 32)])))
    memory.apply()
    noise = torch.cat([memory.near_copies(sketch(torch.rand(1, 3, 32, 32))) for _ in range(20)])
    alone = torch.cat([memory.near_copies(sketch(pictures(1))) for _ in range(20)])
    assert noise.min() > 1
    assert alone.mean() < 0.5


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_decoded_images_have_their_channels_last(channels):
    x = torch.randint(256, (5, channels, 9, 12), dtype=torch.uint8)
    torch.testing.assert_close(Sketch()(x.permute(0, 2, 3, 1)), Sketch()(x), rtol=0, atol=0)
    square = torch.rand(5, channels, 9, 9)
    torch.testing.assert_close(Sketch()(square.permute(0, 2, 3, 1)), Sketch()(square), rtol=1e-5, atol=1e-5)
    assert Sketch()(torch.rand(5, 16, 9, channels)).shape == (5, 2 * 16 + 32), "maps of sixteen channels"


def test_mirrored_images_have_the_same_sketch_and_a_rim_does_not_count():
    x, sketch = torch.rand(4, 3, 32, 40), Sketch()
    torch.testing.assert_close(sketch(x.flip(3)), sketch(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sketch(x.flip(2)), sketch(x), atol=1e-3)
    framed = torch.zeros_like(x)
    framed[..., 1:-1, 1:-1] = x[..., 1:-1, 1:-1]
    assert torch.equal(sketch(framed), sketch(x))
