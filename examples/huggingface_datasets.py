"""Hugging Face datasets: ``map`` prepares, ``with_format("torch")`` gives tensors, and the loader
is any PyTorch loader. Streaming (``IterableDataset``) is the same: no sample needs an index.

Needs the package ``datasets``. With ``load_dataset("imdb", split="train", streaming=True)`` in
place of ``reviews()``, and a tokenizer in place of ``tokenized``, it is a real task.
"""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import pfb

WORDS = ["a", "film", "with", "an", "actor", "who", "says", "that", "the", "plot", "of", "it", "was", "seen", "before"]
OPINIONS = (["dull", "bad", "boring"], ["great", "fine", "moving"])
VOCABULARY = {word: number for number, word in enumerate(["", *WORDS, *OPINIONS[0], *OPINIONS[1]])}


def reviews(n: int) -> Dataset:
    """Twelve words each; one of them says what the critic thought."""
    texts, labels = [], []
    for _ in range(n):
        label, place, which = (int(torch.randint(high, ())) for high in (2, 12, 3))
        words = [WORDS[int(i)] for i in torch.randint(len(WORDS), (12,))]
        words[place] = OPINIONS[label][which]
        texts.append(" ".join(words))
        labels.append(label)
    return Dataset.from_dict({"text": texts, "label": labels})


def tokenized(rows: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": [[VOCABULARY[word] for word in text.split()] for text in rows["text"]]}


class BagOfWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), 32)
        self.hidden = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 2)

    def forward(self, input_ids: Tensor) -> Tensor:  # [N, 12] -> [N, 2]
        logits: Tensor = self.head(self.hidden(self.words(input_ids)).amax(1))
        return logits


def main(epochs: int = 4, streaming: bool = True) -> tuple[float, pfb.BatchPruner]:
    torch.manual_seed(0)
    data = reviews(768).map(tokenized, batched=True, remove_columns=["text"])
    train = data.select(range(512))
    stream: Any = train.to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=128) if streaming else train
    loader: DataLoader[Any] = DataLoader(stream.with_format("torch"), batch_size=32)
    model = BagOfWords()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    memory = pfb.NeighbourMemory(170)  # at most a third of an epoch
    batches = pfb.prune_batches(loader, prune=0.4, density=memory)  # the line
    for epoch in range(epochs):
        batches.set_epoch(epoch)  # another order
        for batch in batches:
            F.cross_entropy(model(batch["input_ids"]), batch["label"]).backward()
            optimizer.step()
            optimizer.zero_grad()
    held_out = data.select(range(512, 768)).with_format("torch")[:]
    model.eval()
    with torch.no_grad():
        accuracy = (model(held_out["input_ids"]).argmax(1) == held_out["label"]).float().mean().item()
    pruner = batches.pruner
    left_out = pruner.stats["pruned_share"]
    print(f"{pruner.steps} steps, {left_out:.0%} of the last batch left out, accuracy on new reviews {accuracy:.1%}")
    return accuracy, pruner


if __name__ == "__main__":
    main()
