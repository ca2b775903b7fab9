"""A name is the model that the field knows by it."""

import logging

import pytest
import timm
import torch
import torchvision

from pfb.lab.errors import RunError
from pfb.lab.train.nets import models
from pfb.lab.train.nets.models import build


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "vit_b_16", "convnext_tiny"],
)
def test_a_torchvision_name_is_torchvisions_model(name):
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    with torch.device("meta"):
        assert count(build(name, 1000, 3, 224)) == published
        if "resnet" in name:
            small = build(name, 1000, 3, 32)
            assert count(small) == published - 64 * 3 * (7 * 7 - 3 * 3), "of the stem alone"
            assert isinstance(small.maxpool, torch.nn.Identity)


def test_resnet50_has_the_parameters_of_resnet50():
    with torch.device("meta"):
        assert count(build("resnet50", 1000, 3, 224)) == 25_557_032


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["resnet50", "vit_tiny_patch16_224", "resnet10t"])
def test_a_timm_name_is_timms_model(name):
    assert count(build(f"timm:{name}", 10, 3, 224)) == count(timm.create_model(name, num_classes=10))


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_the_resnets_for_cifar_have_the_parameters_of_their_paper(depth, millions):
    """He et al. (2016), table 6, whose shortcuts have none."""
    model = build(f"cifar-resnet{depth}", 10, 3, 32)
    shortcuts = sum(p.numel() for name, p in model.named_parameters() if "shortcut" in name)
    assert shortcuts == 2752
    assert round((count(model) - shortcuts) / 1e6, 2 if depth < 110 else 1) == millions
    layers = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and "shortcut" not in name]
    assert len(layers) + 1 == depth


@pytest.mark.parametrize(
    ("name", "channels", "side"),
    [("cifar-resnet8", 1, 8), ("resnet18", 1, 8), ("resnet18", 1, 80), ("mobilenet_v3_small", 3, 32)],
)
def test_images_of_any_size_and_channels(name, channels, side):
    assert build(name, 10, channels, side).eval()(torch.zeros(2, channels, side, side)).shape == (2, 10)


def test_the_cifar_stem_is_told_once(caplog):
    models._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "pfb"), torch.device("meta"):
        build("resnet18", 10, 3, 224)
        assert not caplog.messages
        for _ in range(2):
            build("resnet18", 10, 3, 32)
    assert caplog.messages == [
        "resnet18: at 32 pixels with the CIFAR stem, a 3x3 convolution of stride 1 and no max-pool"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet8", "the one for CIFAR .* is cifar-resnet8"),
        ("resnet56", "the one for CIFAR .* is cifar-resnet56"),
        ("resnet19", "Did you mean"),
        ("cifar-resnet19", "6 n [+] 2 layers .got 19.: cifar-resnet14 or cifar-resnet20"),
        ("cifar-resnet2", "cifar-resnet8 or cifar-resnet14"),
        ("cifar_resnet20", "Did you mean cifar-resnet20"),
        ("timm:vit_smal", "timm has no model .*Did you mean timm:"),
    ],
)
def test_an_unknown_name_is_refused_with_the_way_out(name, message):
    with pytest.raises(RunError, match=message):
        build(name, 10, 3, 32)


def test_only_a_resnet_of_torchvision_takes_gray_images():
    with pytest.raises(RunError, match="3 channels .got 1.; use a ResNet or timm:NAME"):
        build("mobilenet_v3_small", 10, 1, 32)
