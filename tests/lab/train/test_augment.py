"""Flips, crops and mixed samples."""

import pytest
import torch

from pfb.lab.train.batches.augment import flip_and_crop, mix


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "both"])
def test_mixed_images_and_labels(kind):
    torch.manual_seed(0)
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    mixed, soft = mix(images, labels, kind, 4)
    assert mixed.shape == images.shape
    assert soft.shape == (8, 4)
    torch.testing.assert_close(soft.sum(1), torch.ones(8))
    assert mix(images, labels, "none", 4) == (images, labels)


def test_flips_and_crops_are_drawn_for_each_sample():
    torch.manual_seed(0)
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(64, -1, -1, -1)
    flipped = flip_and_crop(image, flip=True, crop=0)
    mirrored = (flipped == image.flip(3)).all((1, 2, 3))
    assert 16 < int(mirrored.sum()) < 48
    assert ((flipped == image).all((1, 2, 3)) | mirrored).all()
    assert len(flip_and_crop(image, flip=False, crop=2).unique(dim=0)) > 10
