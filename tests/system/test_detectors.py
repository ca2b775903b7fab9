"""torchvision's detectors: images of different sizes in a list, and one dict of boxes for each."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import pfb


def faster_rcnn():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
    backbone.out_channels = 8
    return FasterRCNN(
        backbone,
        min_size=32,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((8,),), ((1.0,),)),
        rpn_pre_nms_top_n_train=20,
        rpn_post_nms_top_n_train=10,
        box_roi_pool=MultiScaleRoIAlign(["0"], 2, 1),
        box_head=TwoMLPHead(32, 16),
        box_predictor=FastRCNNPredictor(16, 3),
    )


def batch(n, same_size):
    images = [torch.rand(3, 32, 40) if same_size else torch.rand(3, 32 + 4 * i, 40) for i in range(n)]
    boxes = [torch.tensor([[2.0, 2.0, 20.0, 20.0], [4.0, 8.0, 30.0, 30.0]])[: i % 3] for i in range(n)]
    return images, [{"boxes": b, "labels": torch.ones(len(b), dtype=torch.int64)} for b in boxes]


def losses(model, images, targets):
    torch.manual_seed(1)  # proposals are sampled
    return model(images, targets)


@pytest.mark.parametrize("same_size", [False, True])
@pytest.mark.parametrize("rule", [None, pfb.Uniform()], ids=["drawn", "uniform"])
def test_losses_are_those_of_the_kept_images(rule, same_size):
    model = faster_rcnn()
    plain = copy.deepcopy(model)
    pruner = pfb.BatchPruner(0.4, rule=rule)
    for n in (5, 3, 4, 2):  # three images of three channels look like three batches
        images, targets = batch(n, same_size)
        some, of_some = pruner(images, targets)
        kept = list(range(n)) if pruner.selection is None else pruner.selection.indices.tolist()
        assert len(kept) == len(some) == max(n - n * 4 // 10, 2)
        assert all(a is targets[i] for a, i in zip(of_some, kept, strict=True))
        out = losses(model, some, of_some)
        expected = losses(plain, [images[i] for i in kept], [targets[i] for i in kept])
        for name in expected:
            assert torch.equal(out[name], expected[name])


def test_a_single_shot_detector_judged_by_its_own_layers():
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    model.transform.min_size, model.transform.max_size, model.transform.fixed_size = (64,), 64, (64, 64)
    plain = copy.deepcopy(model)
    images, targets = batch(4, same_size=False)
    features = pfb.Shallow(model, "backbone.features.0.0")
    pruner = pfb.BatchPruner(0.5, features=features, rule=pfb.RareFirst())
    some, of_some = pruner(images, targets, by=lambda b: (b[0], b[1]))
    out = model(some, of_some)
    sum(out.values()).backward()
    kept = pruner.selection.indices.tolist()
    assert len(kept) == 2
    expected = plain([images[i] for i in kept], [targets[i] for i in kept])
    for name in expected:
        torch.testing.assert_close(out[name], expected[name])


def test_inside_the_model_their_targets_bypass_the_cut():
    model = faster_rcnn()
    with (
        pfb.attach(model, "backbone.0"),
        pytest.raises(ValueError, match="takes 'targets' beside 'images'.*BatchPruner"),
    ):
        model(*batch(5, same_size=False))
