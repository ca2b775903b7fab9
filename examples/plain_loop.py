"""The one line in a loop of your own: a small network on scikit-learn's digits. Runs in seconds on
a CPU.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pfb


def main(epochs: int = 8) -> float:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # [1797, 1, 8, 8]
    labels = torch.tensor(digits.target)  # [1797]
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(512, 10)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(TensorDataset(images[:1500], labels[:1500]), batch_size=60, shuffle=True)

    memory = pfb.NeighbourMemory(500)  # at most a third of an epoch; by default 4,096
    batches = pfb.prune_batches(loader, prune=0.4, density=memory)  # the line
    for _ in range(epochs):
        for x, y in batches:  # [36, 1, 8, 8] and [36] of 60
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    model.eval()
    with torch.no_grad():
        accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
    print(f"test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
