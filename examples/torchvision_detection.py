"""Detection with torchvision: a list of images of different sizes, and a dict of boxes for each.
Both lists are selected together before the model sees them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import pfb

Target = dict[str, Tensor]


def detector() -> FasterRCNN:
    """Faster R-CNN with a backbone of three layers, for one kind of object."""
    layers: list[nn.Module] = []
    for inside, outside in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Sequential(nn.Conv2d(inside, outside, 3, 2, 1), nn.ReLU())]
    backbone = nn.Sequential(*layers)
    backbone.out_channels = 32  # type: ignore[assignment]
    return FasterRCNN(
        backbone,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=50,
        box_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
        box_head=TwoMLPHead(32 * 16, 64),
        box_predictor=FastRCNNPredictor(64, 2),
    )


def scene() -> tuple[Tensor, Target]:
    """A dark image of some size with up to two bright squares, and their boxes."""
    height, width = torch.randint(64, 90, (2,)).tolist()
    image = 0.2 * torch.rand(3, height, width)
    boxes = []
    for _ in range(int(torch.randint(0, 3, ()))):
        side, top, left = (int(torch.randint(low, high, ())) for low, high in ((14, 28), (0, 30), (0, 30)))
        image[:, top : top + side, left : left + side] += 0.7
        boxes.append([left, top, left + side, top + side])
    box = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)  # an image without objects has [0, 4]
    return image, {"boxes": box, "labels": torch.ones(len(box), dtype=torch.int64)}


def main(steps: int = 30) -> tuple[float, float, pfb.BatchPruner]:
    """Returns the mean loss of the first and the last fifth of the steps."""
    torch.manual_seed(0)
    model = detector().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = pfb.BatchPruner(prune=0.4)
    history = []
    for _ in range(steps):
        scenes = [scene() for _ in range(10)]
        images: Any = [image for image, _ in scenes]
        targets = [target for _, target in scenes]
        images, targets = pruner(images, targets)  # the line: six of ten
        losses = model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.item())
    part = max(steps // 5, 1)
    first, last = sum(history[:part]) / part, sum(history[-part:]) / part
    left_out = pruner.stats["pruned_share"]
    print(f"loss {first:.2f}, after {steps} steps {last:.2f}; {left_out:.0%} of each batch left out")
    return first, last, pruner


if __name__ == "__main__":
    main()
