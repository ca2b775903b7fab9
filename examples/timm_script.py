"""timm's training script (train.py), cut down to its parts and its loop: what it takes is marked
with ``# pfb``, and lies in ``main``. The loop, with mixup, accumulation, EMA and clipping, stays as
it is.

In that script, too: ``attach`` behind the conversion to SyncBN and before the task or the EMA is
made, the criterion wrapped, one hook on the optimizer. ``timm.task.ClassificationTask`` takes the
wrapped criterion like any other.
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
from torch import Tensor, nn

import pfb


class OfKept(nn.Module):
    """A criterion over the samples that went on."""

    def __init__(self, criterion: nn.Module, blocker: pfb.Blocker) -> None:
        super().__init__()
        self.criterion, self.blocker = criterion, blocker

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.criterion(output, self.blocker.select(target))
        return loss


def write_pictures(folder: Path, per_class: int) -> None:
    """An image folder: noise with one bright quarter, which is the class."""
    for label in range(4):
        (folder / str(label)).mkdir(parents=True)
        for number in range(per_class):
            pixels = torch.randint(0, 100, (40, 40, 3), dtype=torch.uint8)
            top, left = 20 * (label // 2), 20 * (label % 2)
            pixels[top : top + 20, left : left + 20] += 100
            Image.fromarray(pixels.numpy()).save(folder / str(label) / f"{number}.png")


def main(epochs: int = 5, accumulate: int = 2, model_name: str = "test_resnet") -> tuple[float, pfb.Blocker]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "train", per_class=32)
        write_pictures(Path(folder) / "validation", per_class=8)
        common = {"input_size": (3, 32, 32), "use_prefetcher": False, "num_workers": 0, "pin_memory": False}
        train, val = (create_dataset("", root=folder, split=name) for name in ("train", "validation"))
        loader = create_loader(train, batch_size=16, is_training=True, scale=(0.8, 1.0), hflip=0.0, **common)
        loader_eval = create_loader(val, batch_size=16, **common)
        mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=0.2, label_smoothing=0.1, num_classes=4)
        updates = -(-len(loader) // accumulate)

        model = timm.create_model(model_name, num_classes=4)
        share, memory = pfb.window(0.4, stop=0.75), pfb.NeighbourMemory(len(train) // 3)  # of an epoch
        blocker = pfb.attach(model, prune=share, total_steps=epochs * updates, estimator=memory)  # pfb
        ema = ModelEmaV3(model, decay=0.8)
        criterion = OfKept(SoftTargetCrossEntropy(), blocker)  # pfb: the criterion is wrapped
        optimizer = create_optimizer_v2(model, opt="adamw", lr=5e-3)
        optimizer.register_step_post_hook(lambda *_: blocker.step())  # pfb: one step beside each of the optimizer's
        scheduler, _ = create_scheduler_v2(optimizer, num_epochs=epochs, updates_per_epoch=updates)
        for epoch in range(epochs):
            model.train()
            losses, kept = AverageMeter(), AverageMeter()
            for index, (image, target) in enumerate(loader):
                image, target = mixup(image, target)
                output = model(image)
                loss = criterion(output, target)
                (loss / accumulate).backward()
                losses.update(loss.item(), len(output))
                kept.update(len(output) / len(image), len(image))
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
            print(f"epoch {epoch}: loss {losses.avg:.3f}, {1 - kept.avg:.0%} stopped, top-1 {top1.avg:.1f} %")
    return top1.avg, blocker


if __name__ == "__main__":
    main()
