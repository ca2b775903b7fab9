"""The ImageNet script of torchvision (references/classification/train.py), cut down to its loop:
what it takes is marked with ``# pfb``, one line behind the loader and the state in the checkpoint.

Mixup and CutMix (``collate_fn``) need nothing more: soft labels are selected like hard ones. They
hide near-duplicates from whoever sees mixtures only; mix after pruning where they matter.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.models import get_model
from torchvision.transforms import v2

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


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    data_loader: Any,
    ema: AveragedModel,
    scaler: torch.amp.GradScaler,
) -> tuple[float, int]:
    """Returns the mean loss of the epoch, and how many images it was taken over."""
    model.train()
    losses, trained = 0.0, 0
    for image, target in data_loader:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=image.is_cuda):
            output = model(image)
            loss = criterion(output, target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        ema.update_parameters(model)
        losses, trained = losses + loss.item() * len(output), trained + len(output)
    return losses / trained, trained


@torch.inference_mode()
def evaluate(model: nn.Module, data_loader: DataLoader[Any]) -> float:
    """Accuracy."""
    model.eval()
    right: list[Tensor] = [model(image).argmax(1) == target for image, target in data_loader]
    return torch.cat(right).float().mean().item()


def main(epochs: int = 3, prune: float = 0.4, model_name: str = "resnet18") -> dict[str, float]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "train", per_class=24)
        write_pictures(Path(folder) / "val", per_class=8)
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.3] * 3, [0.2] * 3)]
        train = ImageFolder(Path(folder) / "train", v2.Compose([v2.RandomCrop(32), *to_tensor]))
        val = ImageFolder(Path(folder) / "val", v2.Compose([v2.CenterCrop(32), *to_tensor]))
        mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=4), v2.CutMix(alpha=0.2, num_classes=4)])
        loader: Any = DataLoader(
            train, 16, shuffle=True, drop_last=True, collate_fn=lambda batch: mix(default_collate(batch))
        )
        share, memory = pfb.window(prune, stop=0.65), pfb.NeighbourMemory(len(train) // 3)  # of an epoch
        loader = pfb.prune_batches(loader, share, total_steps=epochs * len(loader), density=memory)  # pfb

        model = get_model(model_name, num_classes=4)
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
        criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        scaler = torch.amp.GradScaler(enabled=False)  # True with fp16 on a GPU
        report = {}
        for epoch in range(epochs):
            loss, trained = train_one_epoch(model, criterion, optimizer, loader, ema, scaler)
            scheduler.step()
            left_out = 1 - trained / (16 * len(loader))
            report = {"left out": left_out, "accuracy": evaluate(model, DataLoader(val, 16))}
            report["accuracy of the EMA"] = evaluate(ema, DataLoader(val, 16))
            print(f"epoch {epoch}: loss {loss:.3f}, " + ", ".join(f"{name} {x:.1%}" for name, x in report.items()))
        checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epochs}
        checkpoint["loader"] = loader.state_dict()  # pfb
    return report


if __name__ == "__main__":
    main()
