"""The paper's own tool, Partial Forward Blocking, with its settings: three lines in the loop. All
samples pass the shallow layers of the model itself; those whose features are dense stop there.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import pfb


def main(epochs: int = 8) -> tuple[float, float]:
    """Accuracy on digits not trained on, and the largest share that was stopped."""
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

    blocker = pfb.attach(model, cut="0", **pfb.paper(total_steps=epochs * 25, prune=0.4))  # 1
    most = 0.0
    for _ in range(epochs):
        for batch in torch.randperm(1500).split(60):
            logits = model(images[batch])  # [36, 10] where 40 % are stopped
            loss = F.cross_entropy(logits, blocker.select(labels[batch]))  # 2
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            most = max(most, 1 - len(logits) / len(batch))
            blocker.step()  # 3

    model.eval()
    with torch.no_grad():
        accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
    print(f"test accuracy {accuracy:.1%}; at most {most:.0%} of a batch were stopped")
    return accuracy, most


if __name__ == "__main__":
    main()
