"""Detection in COCO's format with torchvision's Faster R-CNN, at 30 %, by either tool.

    accelerate launch --multi_gpu --num_processes 2 examples/torchvision_detection.py --tool copies
        --images train2017 --annotations instances_train2017.json --out runs/coco

``--tool copies`` prunes lists of images and of boxes before the model, ``--tool paper`` runs the
paper's method inside the backbone. Recipe of torchvision's reference script: 26 epochs of SGD, a
tenth after 16 and 22. Without ``--images``, few made pictures and a small network. The same command
goes on where an earlier one stopped. AP is not measured here: that needs pycocotools.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import get_model
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign
from torchvision.transforms.functional import pil_to_tensor

import pfb

Target = dict[str, Tensor]


class Coco(Dataset[tuple[Tensor, Target]]):
    """Images ``[3, H, W]`` in [0, 1], and their boxes ``[B, 4]`` and labels ``[B]`` from 1."""

    def __init__(self, images: Path, annotations: Path) -> None:
        content = json.loads(annotations.read_text())
        self.folder, self.images = images, content["images"]
        self.labels = {category["id"]: i for i, category in enumerate(content["categories"], start=1)}
        self.found: dict[int, list[Any]] = {image["id"]: [] for image in self.images}
        for box in content["annotations"]:
            if not box.get("iscrowd") and min(box["bbox"][2:]) > 0:
                self.found[box["image_id"]].append(box)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, found = self.images[index], self.found[self.images[index]["id"]]
        pixels = pil_to_tensor(Image.open(self.folder / image["file_name"]).convert("RGB")) / 255
        boxes = torch.tensor([box["bbox"] for box in found], dtype=torch.float32).reshape(-1, 4)  # x, y, w, h
        boxes[:, 2:] += boxes[:, :2]
        return pixels, {"boxes": boxes, "labels": torch.tensor([self.labels[b["category_id"]] for b in found]).long()}


class Blocked(nn.Module):
    """A detector whose backbone keeps some of its images: the rest of it gets their targets only.

    ``detector(images, targets)`` cannot do this by itself, since targets go around the backbone.
    """

    def __init__(self, detector: Any, **settings: Any) -> None:
        super().__init__()
        self.detector = detector
        self.blocker = pfb.attach(detector.backbone, **settings)  # pfb, after its first stage

    def forward(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        detector = self.detector
        batch, targets = detector.transform(images, targets)
        maps = detector.backbone(batch.tensors)  # of K of N images
        pixels, sizes, targets = self.blocker.select(batch.tensors, batch.image_sizes, targets)  # pfb
        batch = ImageList(pixels, sizes)
        proposals, losses = detector.rpn(batch, maps, targets)
        return losses | detector.roi_heads(maps, proposals, sizes, targets)[1]


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Images differ in size, so they are not stacked."""
    return [image for image, _ in samples], [target for _, target in samples]


def train(data: Coco, model: Any, tool: str, out: Path, epochs: int, **loading: int) -> tuple[list[float], Any]:
    """Train to the end, from the start or from what lies in ``out``.

    Returns:
        The mean losses of the epochs that this call did, and the pruner or blocker.
    """
    in_known_order = DataLoaderConfiguration(use_seedable_sampler=True)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), dataloader_config=in_known_order)
    loader: Any = DataLoader(data, shuffle=True, drop_last=True, collate_fn=collate, **loading)  # type: ignore[arg-type]
    loader = accelerator.prepare(loader)
    steps = epochs * len(loader)
    if tool == "paper":
        model = Blocked(model, **pfb.paper(steps, prune=0.3))
        pruner = model.blocker
        accelerator.register_for_checkpointing(pruner)
    else:
        memory = pfb.NeighbourMemory(max(2, min(4096, len(data) // 3)))
        loader = pfb.prune_batches(loader, pfb.window(0.3, stop=0.875), total_steps=steps, density=memory)  # pfb
        pruner = loader.pruner
        accelerator.register_for_checkpointing(loader)
    lr = 0.02 * loading["batch_size"] * accelerator.num_processes / 16
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    warmup, tenths = min(1000, len(loader)), (steps * 16 // 26, steps * 22 // 26)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * 0.1 ** sum(step >= tenth for tenth in tenths)
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(rates)
    saved, history = sorted(out.glob("epoch*")), []
    if saved:
        accelerator.load_state(str(saved[-1]))
    for epoch in range(len(saved), epochs):
        loader.set_epoch(epoch)
        model.train()
        total = 0.0
        for images, targets in loader:
            loss = torch.stack(list(model(images, targets).values())).sum()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            rates.step()
            if tool == "paper":
                pruner.step()  # pfb
            total += loss.item()
        history.append(total / len(loader))
        accelerator.save_state(str(out / "draft"))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (out / "draft").rename(out / f"epoch{epoch:03}")  # which are whole, whenever the machine stops
        accelerator.wait_for_everyone()
        accelerator.print(f"epoch {epoch + 1} of {epochs}: loss {history[-1]:.3f}")
    accelerator.free_memory()
    return history, pruner


def write_scenes(folder: Path, count: int = 16) -> tuple[Path, Path]:
    """Dark images of several sizes with up to two squares, bright or red, and their boxes in COCO's
    format; returns where the two lie.
    """
    generator = torch.Generator().manual_seed(0)

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    images: list[Any] = []
    boxes: list[Any] = []
    (folder / "images").mkdir(parents=True)
    for i in range(count):
        height, width = between(64, 90), between(64, 90)
        pixels = torch.randint(0, 50, (height, width, 3), generator=generator, dtype=torch.uint8)
        for _ in range(between(0, 3)):
            kind, side, top, left = between(1, 3), between(14, 28), between(0, 30), between(0, 30)
            pixels[top : top + side, left : left + side, : 3 if kind == 1 else 1] = 220
            box = {"image_id": i, "category_id": 10 * kind, "bbox": [left, top, side, side], "iscrowd": 0}
            boxes.append({"id": len(boxes), "area": side**2, **box})
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        Image.fromarray(pixels.numpy()).save(folder / "images" / f"{i}.png")
    kinds = [{"id": 10, "name": "bright"}, {"id": 20, "name": "red"}]
    content = {"images": images, "annotations": boxes, "categories": kinds}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "images", folder / "instances.json"


def small() -> dict[str, Any]:
    """Settings of a Faster R-CNN for few pictures."""
    pool, head = MultiScaleRoIAlign(["0", "1"], 2, 2), TwoMLPHead(256 * 2 * 2, 1024)
    few = {"rpn_pre_nms_top_n_train": 100, "rpn_post_nms_top_n_train": 50}
    return {"min_size": 64, "max_size": 96, "box_roi_pool": pool, "box_head": head, **few}


def main(arguments: list[str] | None = None) -> tuple[list[float], Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--model", default="fasterrcnn_resnet50_fpn")
    parser.add_argument("--backbone", help="weights of torchvision, such as DEFAULT")
    parser.add_argument("--tool", choices=("copies", "paper"), default="copies")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        out, made = given.out or Path(folder) / "run", given.images is None
        places = write_scenes(Path(folder)) if made else (given.images, given.annotations)
        data = Coco(*places)
        name = "fasterrcnn_mobilenet_v3_large_fpn" if made else given.model
        kinds, sizes = len(data.labels) + 1, small() if made else {}
        model = get_model(name, weights=None, weights_backbone=given.backbone, num_classes=kinds, **sizes)
        loading = {"batch_size": given.batch_size, "num_workers": given.workers}
        return train(data, model, given.tool, out, given.epochs or (3 if made else 26), **loading)


if __name__ == "__main__":
    main()
