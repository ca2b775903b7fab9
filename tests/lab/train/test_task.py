"""Other tasks than a class per image."""

import math

import pytest
import torch
from torch.nn import functional as F

from pfb.lab.errors import RunError
from pfb.lab.train import task
from pfb.lab.train.loop import dry_run, train
from pfb.lab.train.options.config import TrainConfig

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

SMALL = {"epochs": 2, "train_samples": 256, "batch_size": 64, "cpu": True, "n_centers": 16}


def config(run, **changes):
    return TrainConfig(**{**SMALL, "out": run, **changes})


def test_segmentation(tmp_path):
    settings = {"data": "shapes", "model": "segformer", "train_samples": 32, "batch_size": 16, "method": "paper-before"}
    settings |= {"eval_every": 2}
    summary = train(config(tmp_path / "run", **settings))
    assert summary["task"] == "segmentation"
    assert 0 < summary["test_mean_iou"] < 1
    assert summary["trained_samples"] < summary["samples"]


@pytest.mark.parametrize("model", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_segmentation_models_of_torchvision_with_an_auxiliary_head_and_without(tmp_path, model):
    dry_run(config(tmp_path / "run", data="shapes", model=model, batch_size=8))


def test_language(tmp_path):
    settings = {"data": "text", "model": "gpt", "optimizer": "adamw", "lr": 3e-3, "label_smoothing": 0.0}
    settings |= {"epochs": 1, "batch_size": 16}
    dry_run(config(tmp_path / "run", **settings))
    summary = train(config(tmp_path / "run", method="copies", **settings))
    assert summary["test_perplexity"] == pytest.approx(math.exp(summary["test_loss"]))
    assert summary["test_perplexity"] < 80, "128 if nothing were learned"
    assert summary["trained_samples"] < summary["samples"]


@pytest.mark.parametrize("changes", [{"mix": "mixup"}, {"model": "cifar-resnet8"}])
def test_what_a_task_does_not_know_is_refused(tmp_path, changes):
    with pytest.raises(RunError, match="--"):
        train(config(tmp_path / "run", **{"data": "shapes", "model": "segformer", **changes}))


def test_losses_and_accuracies_are_one_per_sample():
    logits, target = torch.randn(3, 5, 4, 4), torch.randint(5, (3, 4, 4))
    each = task.losses(logits, target)
    assert each.shape == task.accuracies(logits, target).shape == (3,)
    torch.testing.assert_close(each.mean(), F.cross_entropy(logits, target))
    tokens = task.logits_of(torch.randn(3, 7, 5), torch.zeros(3, 7, dtype=torch.int64))
    assert tokens.shape == (3, 5, 7)


def test_mean_iou_by_hand():
    logits = F.one_hot(torch.tensor([[0, 0, 1], [1, 1, 2]])).permute(0, 2, 1).float()[..., None]
    target = torch.tensor([[0, 1, 1], [1, 1, 2]])[..., None]
    counted = task.confusion(logits, target, 4)
    first = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    second = [[0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert counted.tolist() == [first, second]
    counted = counted.sum(0)
    assert task.mean_iou(counted) == pytest.approx((1 / 2 + 3 / 4 + 1) / 3), "the class that never occurs is left out"
