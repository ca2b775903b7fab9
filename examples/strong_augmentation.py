"""Strong augmentation hides copies from whoever sees augmented images only. Here the loader gives
each image as it is stored, too, and samples are judged by that: ``by=``.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import pfb

FILMED, FRAMES, SINGLES = 20, 40, 800


class Digits(Dataset[tuple[Tensor, Tensor, Tensor, bool]]):
    """20 digits that were filmed, and 800 single ones: augmented image, the image as it is stored,
    class, and whether it is a frame.
    """

    augment = v2.Compose([v2.RandomResizedCrop(16, scale=(0.3, 1)), v2.ColorJitter(0.4, 0.4), v2.RandomErasing(0.5)])

    def __init__(self) -> None:
        digits = load_digits()
        counts = torch.tensor([FRAMES] * FILMED + [1] * SINGLES)
        images = torch.tensor(digits.images[: len(counts)], dtype=torch.float32)[:, None] / 16
        shots = images.repeat_interleave(counts, 0)
        self.stored = F.interpolate((shots + 0.02 * torch.randn_like(shots)).clamp(0, 1), scale_factor=3)
        self.labels = torch.tensor(digits.target[: len(counts)]).repeat_interleave(counts)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor, bool]:
        return self.augment(self.stored[i]), self.stored[i], self.labels[i], i < FILMED * FRAMES


def main(epochs: int = 3, originals: bool = True) -> tuple[float, float]:
    """What share of the frames, and of the single images, was kept."""
    torch.manual_seed(0)
    loader = DataLoader(Digits(), batch_size=64, shuffle=True, drop_last=True)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    memory = pfb.NeighbourMemory(512)  # at most a third of an epoch

    pruner = pfb.BatchPruner(prune=0.5, density=memory)
    kept, met = torch.zeros(2), torch.zeros(2)
    for _ in range(epochs):
        for image, stored, label, is_frame in loader:
            met += torch.stack([is_frame.sum(), (~is_frame).sum()])
            image, label, is_frame = pruner(image, label, is_frame, by=stored if originals else image)
            F.cross_entropy(model(image), label).backward()
            optimizer.step()
            optimizer.zero_grad()
            kept += torch.stack([is_frame.sum(), (~is_frame).sum()])

    frames, singles = (kept / met).tolist()
    print(f"{frames:.0%} of the frames were kept, and {singles:.0%} of the single images")
    return frames, singles


if __name__ == "__main__":
    main()
