"""torchvision's detectors: images of different sizes in a list, and one dict of boxes for each."""

import copy
import os
import runpy
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from torchvision.models.detection import FasterRCNN, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import pfb
from tests.launching import accelerate_launch
from tests.system.test_distributed import on_two_ranks

EXAMPLE = Path(__file__).parents[2] / "examples/torchvision_detection.py"


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


def weights(folder):
    return load_file(sorted(folder.glob("epoch*"))[-1] / "model.safetensors")


@pytest.mark.usefixtures("_fresh_accelerate")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("tool", ["copies", "paper"])
def test_the_example_learns_from_cocos_format_and_is_resumed(tmp_path, tool):
    """With 30 % pruned, by either tool, to its end; stopped in its third epoch, it ends as if it
    had not been.
    """
    main = runpy.run_path(str(EXAMPLE))["main"]
    trained, forward = [], RoIHeads.forward

    def counting(heads, maps, proposals, sizes, targets):
        trained.append(len(targets))
        return forward(heads, maps, proposals, sizes, targets)

    with mock.patch.object(RoIHeads, "forward", counting):
        history, pruner = main(["--tool", tool, "--out", str(tmp_path / "straight")])
    assert history[-1] < 0.8 * history[0]
    assert pruner.steps == pruner.total_steps == len(trained) == 12
    assert set(trained) == {3, 4}, "of four, and all at the end"
    assert trained[-1] == 4
    save, calls = Accelerator.save_state, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return save(*arguments)

    with mock.patch.object(Accelerator, "save_state", stopping), pytest.raises(KeyboardInterrupt):
        main(["--tool", tool, "--out", str(tmp_path / "broken")])
    again, _ = main(["--tool", tool, "--out", str(tmp_path / "broken")])
    assert again == history[2:]
    straight, broken = weights(tmp_path / "straight"), weights(tmp_path / "broken")
    assert all(torch.equal(broken[name], value) for name, value in straight.items())


def _rank_of_the_example(rank, tool, out):
    AcceleratorState._reset_state(True)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    history, pruner = runpy.run_path(str(EXAMPLE))["main"](["--tool", tool, "--epochs", "2", "--out", str(out)])
    assert len(history) == 2
    assert pruner.steps == 4, "half of what one rank takes"


@pytest.mark.parametrize("tool", ["copies", "paper"])
def test_the_example_runs_on_two_ranks(tmp_path, tool):
    on_two_ranks(_rank_of_the_example, tool, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"epoch000", "epoch001"}


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["copies", "paper"])
def test_the_example_is_launched_and_resumed_by_accelerate(tmp_path, tool):
    command = (EXAMPLE, "--tool", tool, "--epochs", "2", "--out", tmp_path)
    for epochs in (["epoch 1 of 2", "epoch 2 of 2"], ["epoch 2 of 2"]):
        said = accelerate_launch(*command).splitlines()
        assert [line.split(":")[0] for line in said if line.startswith("epoch")] == epochs
        (tmp_path / "epoch001").rename(tmp_path / "draft")  # as if it had been stopped there
