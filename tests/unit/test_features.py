"""From layer outputs to features: the channel axis above all."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import pfb
from pfb.features.cut import (
    CutFeatures,
    _drawn,
    batched_tensor,
    channel_layers,
    infer_channel_dim,
    pool,
    random_projection,
)
from tests import zoo


def inferred(model, cut, x):
    module = model.get_submodule(cut)
    seen = {}
    handle = module.register_forward_hook(lambda m, a, out: seen.setdefault("out", out))
    model.eval()
    with torch.no_grad():
        model(x)
    handle.remove()
    return batched_tensor(seen["out"]).shape, infer_channel_dim(
        batched_tensor(seen["out"]).shape, channel_layers(module, model)
    )


image = torch.zeros(2, 3, 64, 64)


@pytest.mark.parametrize(
    ("make", "cut", "channels"),
    [
        (lambda: torchvision.models.resnet18(), "layer1", 64),  # [N, 64, 16, 16]
        (lambda: torchvision.models.resnet18(), "maxpool", 64),  # a cut without channels of its own
        (lambda: torchvision.models.swin_t(), "features.1", 96),  # NHWC
        (lambda: torchvision.models.convnext_tiny(), "features.1", 96),  # NCHW from linear layers
        (lambda: torchvision.models.efficientnet_b0(), "features.1", 16),
        (lambda: torchvision.models.regnet_y_400mf(), "trunk_output.block1", 48),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), "blocks.1", 192),  # tokens
        (lambda: timm.create_model("convnext_atto"), "stages.0", 40),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=64), "layers.0", 96),  # NHWC
    ],
)
def test_channels_are_found(make, cut, channels):
    shape, dim = inferred(make(), cut, image)
    assert shape[dim] == channels


def test_a_square_convolutional_map_is_not_ambiguous():
    """64 channels of 64 x 64 pixels: ResNet-18 at 256 pixels."""
    layers = channel_layers(torchvision.models.resnet18().layer1, nn.Identity())
    assert infer_channel_dim((2, 64, 64, 64), layers) == 1


@pytest.mark.parametrize(
    ("net", "channels"),
    [
        (nn.LSTM(4, 8, batch_first=True), 8),
        (nn.GRU(8, 5, bidirectional=True, batch_first=True), 10),
        (nn.LSTM(4, 8, proj_size=3, batch_first=True), 3),
    ],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers_have_their_channels_last(net, channels):
    shape, dim = inferred(nn.Sequential(net), "0", torch.zeros(2, channels, net.input_size))
    assert dim == 2
    assert shape[dim] == channels


def test_concatenated_convolutions():
    """DenseNet, SqueezeNet, ShuffleNet: the output has more channels than the last layer."""
    assert infer_channel_dim((2, 256, 16, 16), ((1, 128), (1, 32))) == 1


def test_a_swin_map_as_wide_as_it_has_channels_is_not_ambiguous():
    layers = ((-1, 96), (-1, 384), (-1, 96))
    assert infer_channel_dim((2, 96, 96, 96), layers) == 3


def test_pooling_a_swin_map_keeps_the_channels():
    """The trap: averaging the last two axes of [N, H, W, C] leaves rows and loses the channels."""
    x = torch.arange(4.0).expand(2, 5, 6, 4)
    assert pool(x, channel_dim=-1).tolist() == [[0.0, 1.0, 2.0, 3.0]] * 2


@pytest.mark.parametrize("named", [0, 4, 5, -4, -5])
def test_a_dimension_that_is_none_of_the_channels_is_refused_and_does_not_wrap(named):
    with pytest.raises(ValueError, match=rf"beside that of the samples, 0, .*\(2, 3, 8, 8\) \(got {named}\)"):
        CutFeatures((), channel_dim=named)(torch.zeros(2, 3, 8, 8))


def test_pooling_tokens_keeps_the_channels():
    x = torch.arange(4.0).expand(2, 7, 4)
    assert pool(x, infer_channel_dim(x.shape, ())).tolist() == [[0.0, 1.0, 2.0, 3.0]] * 2


def test_sequences_of_a_convolution_have_their_channels_in_the_middle():
    conv = nn.Conv1d(3, 8, 3)
    assert infer_channel_dim((2, 8, 50), channel_layers(conv, conv)) == 1


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ((2, 5, 6, 7), ()),  # nothing known
        ((2, 96, 96, 96), ((1, 96), (-1, 96))),  # kinds mix and every axis fits
        ((2, 5, 6, 7), ((1, 64), (-1, 32))),  # kinds mix and no axis fits
        ((2, 5, 6), ((1, 64),)),  # flattened by something unknown
    ],
)
def test_an_ambiguous_axis_is_an_error_that_asks(shape, layers):
    with pytest.raises(ValueError, match="channel_dim"):
        infer_channel_dim(shape, layers)


def test_the_error_goes_away_with_channel_dim():
    class Blocks(nn.Module):
        def forward(self, x):
            return x.view(len(x), 2, 3, 4)

    model = nn.Sequential(Blocks(), nn.Flatten(), nn.Linear(24, 2))
    blocker = pfb.attach(model, "0", 0.5, rule=pfb.RareFirst())
    with pytest.raises(ValueError, match="channel_dim"):
        model(torch.randn(8, 24))
    blocker.detach()
    with pfb.attach(model, "0", 0.5, channel_dim=-1, rule=pfb.RareFirst()):
        assert model(torch.randn(8, 24)).shape == (4, 2)


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass"])
def test_structured_outputs(kind):
    model = zoo.Structured(kind)
    blocker = pfb.attach(model, "encoder", 0.5)
    assert model(torch.randn(8, 5, 6)).shape == (4, 3)
    assert blocker.select(torch.arange(8)).shape == (4,)


def test_own_features():
    model = zoo.mlp(6, 8, 3)
    with pfb.attach(model, "0", 0.5, features=lambda out: out[:, :2]) as blocker:
        model(torch.randn(8, 6))
        assert blocker.features.shape == (8, 2)
    with pfb.attach(model, "0", 0.5, features=lambda out: out[0]), pytest.raises(ValueError, match=r"\[N, D\]"):
        model(torch.randn(8, 6))


def test_an_output_without_features_is_refused():
    class Ids(nn.Module):
        def forward(self, x):
            return x.long()

    model = nn.Sequential(Ids(), nn.Embedding(10, 3))
    pfb_error = pytest.raises(TypeError, match="features=")
    with pfb.attach(model, "0", 0.5, rule=pfb.RareFirst()), pfb_error:
        model(torch.ones(4, 2))


def test_pooling_half_precision_accumulates_in_float32():
    x = torch.full((1, 4, 256, 256), 1.0, dtype=torch.bfloat16) + torch.rand(1, 4, 256, 256).bfloat16()
    assert pool(x, 1).dtype == torch.float32
    torch.testing.assert_close(pool(x, 1), x.double().mean((2, 3)).float())


def test_the_projection_is_fixed_and_keeps_distances():
    once = random_projection(512, 128)
    _drawn.cache_clear()
    assert torch.equal(once, random_projection(512, 128))
    x = torch.randn(50, 512)
    before, after = torch.pdist(x), torch.pdist(x @ random_projection(512, 128))
    assert ((after / before - 1).abs() < 0.3).all()


@pytest.mark.parametrize("features", [None, lambda output: output.square()])
def test_wide_features_can_be_reduced(features):
    model = zoo.mlp(6, 64, 3)
    with pfb.attach(model, "0", 0.5, features=features, feature_dim=16, rule=pfb.RareFirst()) as blocker:
        model(torch.randn(8, 6))
        assert blocker.features.shape == (8, 16)
