"""Contrastive learning: two views of each image go forward together, and pairs are stopped, never
halves of them.

The model takes both views, so ``recompute`` selects both; the first one is scored. Without labels
there is nothing to select outside: the loss is that of the pairs that went on.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import pfb


class TwoViews(nn.Module):
    """Embeddings of both views of a batch, ``[2, N, 16]``, of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
        self.rest = nn.Sequential(
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16)),
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.stack([F.normalize(self.rest(self.stem(view)), dim=1) for view in (first, second)])


def view(images: Tensor) -> Tensor:
    """Shifted by up to a pixel, brighter or darker, with noise."""
    shifts = torch.randint(-1, 2, (len(images), 2)).tolist()
    moved = torch.stack([torch.roll(image, shift, dims=(1, 2)) for image, shift in zip(images, shifts, strict=True)])
    light = 0.7 + 0.6 * torch.rand(len(images), 1, 1, 1)
    return moved * light + 0.1 * torch.randn_like(images)


def info_nce(embeddings: Tensor, temperature: float = 0.2) -> Tensor:
    """Each first view has to find its own second view among all of the batch (van den Oord et al.,
    2018).
    """
    similarity = embeddings[0] @ embeddings[1].T / temperature  # [K, K]
    return F.cross_entropy(similarity, torch.arange(len(similarity)))


def main(epochs: int = 10) -> float:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # [1797, 1, 8, 8]
    model = TwoViews()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    memory = pfb.NeighbourMemory(500)  # at most a third of an epoch
    blocker = pfb.attach(model, cut="stem", prune=0.4, shallow="recompute", estimator=memory)
    for _ in range(epochs):
        for batch in torch.randperm(1500).split(100):
            embeddings = model(view(images[batch]), view(images[batch]))  # [2, 60, 16] of 100 pairs
            info_nce(embeddings).backward()
            optimizer.step()
            optimizer.zero_grad()
            blocker.step()
    model.eval()
    with torch.no_grad():
        first, second = model(view(images[1500:]), view(images[1500:]))  # [297, 16] each
    found = (first @ second.T).argmax(1) == torch.arange(len(first))
    print(f"{found.float().mean():.1%} of unseen images find their own other view among {len(first)}")
    return found.float().mean().item()


if __name__ == "__main__":
    main()
