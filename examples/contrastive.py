"""Contrastive learning: two views of each image lie in one batch, and pairs are left out, never
halves of them: ``views=2``.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import pfb


class Embedding(nn.Module):
    """Embeddings ``[N, 16]`` of images, of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
        self.rest = nn.Sequential(
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.rest(self.stem(images)), dim=1)


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
    first, second = embeddings.chunk(2)
    similarity = first @ second.T / temperature  # [K, K]
    return F.cross_entropy(similarity, torch.arange(len(similarity)))


def main(epochs: int = 10) -> float:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # [1797, 1, 8, 8]
    model = Embedding()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    memory = pfb.NeighbourMemory(500)  # at most a third of an epoch
    pruner = pfb.BatchPruner(prune=0.4, views=2, density=memory)
    for _ in range(epochs):
        for batch in torch.randperm(1500).split(100):
            both = torch.cat([view(images[batch]), view(images[batch])])  # row i and row i + 100 are a pair
            both = pruner(both)  # [120, 1, 8, 8]: 60 of 100 pairs
            info_nce(model(both)).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        first, second = model(view(images[1500:])), model(view(images[1500:]))  # [297, 16] each
    found = (first @ second.T).argmax(1) == torch.arange(len(first))
    print(f"{found.float().mean():.1%} of unseen images find their own other view among {len(first)}")
    return found.float().mean().item()


if __name__ == "__main__":
    main()
