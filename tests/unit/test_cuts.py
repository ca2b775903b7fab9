"""The first stage of each family, found by structure."""

import re

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from pfb.model.cuts import find_first_stage

TORCHVISION = {
    "resnet18": "layer1",
    "resnet50": "layer1",
    "vgg11": "features.2",
    "vgg16_bn": "features.6",
    "swin_t": "features.1",
    "vit_b_16": "encoder.layers.encoder_layer_1",
    "convnext_tiny": "features.1",
    "efficientnet_b0": "features.1",
    "regnet_y_400mf": "trunk_output.block1",
    "mobilenet_v2": "features.1",
    "mobilenet_v3_small": "features.1",
    "densenet121": "features.denseblock1",
}
TIMM = {
    "resnet18": "layer1",
    "vgg11_bn": "features.3",
    "swin_tiny_patch4_window7_224": "layers.0",
    "vit_small_patch16_224": "blocks.1",
    "deit_small_patch16_224": "blocks.1",
    "convnext_atto": "stages.0",
    "efficientnet_b0": "blocks.0",
    "regnety_004": "s1",
    "mobilenetv2_100": "blocks.0",
    "mobilenetv3_small_100": "blocks.0",
}
TRANSFORMERS = {
    "bert": ("BertForSequenceClassification", r"bert\.encoder\.layer\.1"),
    "distilbert": ("DistilBertForSequenceClassification", r"distilbert\.transformer\.layer\.0"),
    "vit": ("ViTForImageClassification", r"vit\.(encoder\.layer|layers)\.1"),
    "swin": ("SwinForImageClassification", r"swin\.encoder\.layers\.0"),
    "convnext": ("ConvNextForImageClassification", r"convnext\.encoder\.stages\.0"),
    "resnet": ("ResNetForImageClassification", r"resnet\.encoder\.stages\.0"),
    "gpt2": ("GPT2LMHeadModel", r"transformer\.h\.1"),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", r"wav2vec2\.encoder\.layers\.1"),
}


def hollow(make):
    """The model without its weights; with them where some release computes while it builds."""
    try:
        with torch.device("meta"):
            return make()
    except (NotImplementedError, RuntimeError):
        return make()


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    model = hollow(lambda: torchvision.models.get_model(name))
    assert find_first_stage(model) == TORCHVISION[name]


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    model = hollow(lambda: timm.create_model(name))
    assert find_first_stage(model) == TIMM[name]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name):
    kind, expected = TRANSFORMERS[name]
    model = hollow(lambda: getattr(transformers, kind)(transformers.AutoConfig.for_model(name)))
    found = find_first_stage(model)
    assert re.fullmatch(expected, found), found


@pytest.mark.parametrize(
    ("make", "candidate"),
    [
        (lambda: torchvision.models.get_model("inception_v3", init_weights=False), "Mixed_5b"),
        (lambda: nn.Linear(2, 2), "BatchPruner"),
        (
            lambda: transformers.T5ForConditionalGeneration(transformers.AutoConfig.for_model("t5")),
            "encoder.block.0",
        ),
    ],
)
def test_where_it_cannot_tell_it_lists_candidates(make, candidate):
    model = hollow(make)
    with pytest.raises(ValueError, match=f"cannot tell the first stage.*{candidate}"):
        find_first_stage(model)
