"""timm's training script (train.py), cut down to its parts and its loop: the one line that it takes
is marked with ``# pfb``, and stands behind ``create_loader`` in that script, too. The loop, with
mixup, accumulation, EMA and clipping, stays as it is.

Mixup in the loop mixes what was kept. (With timm's prefetcher it mixes in the loader, so that
mixtures are judged: there near-duplicates are seen less.)
"""

import tempfile
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy, dispatch_clip_grad

import pfb


def write_pictures(folder: Path, per_class: int) -> None:
    """An image folder: noise with one bright quarter, which is the class."""
    for label in range(4):
        (folder / str(label)).mkdir(parents=True)
        for number in range(per_class):
            pixels = torch.randint(0, 100, (40, 40, 3), dtype=torch.uint8)
            top, left = 20 * (label // 2), 20 * (label % 2)
            pixels[top : top + 20, left : left + 20] += 100
            Image.fromarray(pixels.numpy()).save(folder / str(label) / f"{number}.png")


def main(epochs: int = 5, accumulate: int = 2, model_name: str = "test_resnet") -> tuple[float, pfb.BatchPruner]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "train", per_class=32)
        write_pictures(Path(folder) / "validation", per_class=8)
        workers = {"num_workers": 0, "persistent_workers": False}
        common = {"input_size": (3, 32, 32), "use_prefetcher": False, "pin_memory": False, **workers}
        train, val = (create_dataset("", root=folder, split=name) for name in ("train", "validation"))
        loader = create_loader(train, batch_size=16, is_training=True, scale=(0.8, 1.0), hflip=0.0, **common)
        loader_eval = create_loader(val, batch_size=16, **common)
        share, memory = pfb.window(0.5, stop=0.75), pfb.NeighbourMemory(len(train) // 3)  # of an epoch
        loader = pfb.prune_batches(loader, share, density=memory, total_steps=epochs * len(loader))  # pfb
        mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=0.2, label_smoothing=0.1, num_classes=4)
        updates = -(-len(loader) // accumulate)

        model = timm.create_model(model_name, num_classes=4)
        ema = ModelEmaV3(model, decay=0.8)
        criterion = SoftTargetCrossEntropy()
        optimizer = create_optimizer_v2(model, opt="adamw", lr=5e-3)
        scheduler, _ = create_scheduler_v2(optimizer, num_epochs=epochs, updates_per_epoch=updates)
        for epoch in range(epochs):
            model.train()
            losses = AverageMeter()
            for index, (image, target) in enumerate(loader):
                image, target = mixup(image, target)
                output = model(image)
                loss = criterion(output, target)
                (loss / accumulate).backward()
                losses.update(loss.item(), len(output))
                if (index + 1) % accumulate and index + 1 < len(loader):
                    continue
                dispatch_clip_grad(model.parameters(), value=1.0)
                optimizer.step()
                optimizer.zero_grad()
                ema.update(model)
            scheduler.step(epoch + 1)
            model.eval()
            top1 = AverageMeter()
            with torch.inference_mode():
                for image, target in loader_eval:
                    top1.update(accuracy(model(image), target)[0].item(), len(image))
            print(f"epoch {epoch}: loss {losses.avg:.3f} over {losses.count} images, top-1 {top1.avg:.1f} %")
    return top1.avg, loader.pruner


if __name__ == "__main__":
    main()
