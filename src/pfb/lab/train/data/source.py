"""What a run trains on: a task, its data, and how a batch becomes a model's input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A task and its data.

    Attributes:
        train, test: data sets with ``labels``, whose items, or whose ``__getitems__`` batches, are
            dicts ``input``, ``label``, ``index``.
        classes: names of the classes, or of the tokens.
        channels, image_size: of the images ``[C, S, S]``; for text 1 and the number of tokens.
        prepare_train, prepare_test: from a batch's input on the device to what the model takes.
        collate: the loader's collate function.
        task: what the labels are: a class per image, per pixel, or the next token.
        names: of the training samples' files, in their order; ``None`` for data without files.
    """

    train: Dataset[Any]
    test: Dataset[Any]
    classes: list[str]
    channels: int
    image_size: int
    prepare_train: Callable[[Tensor], Tensor]
    prepare_test: Callable[[Tensor], Tensor]
    collate: Callable[[Any], Batch] | None
    task: Literal["classification", "segmentation", "language"] = "classification"
    names: list[str] | None = None

    def original(self, batch: Batch) -> Tensor:
        """A batch's inputs without augmentation; thumbnails, where they are augmented as they are
        loaded.
        """
        return self.prepare_test(batch.get("original", batch["input"]))


class InMemory(Dataset[Batch]):
    """Images ``[N, C, H, W]`` uint8 or tokens ``[N, T]``, and labels ``[N, ...]``, fetched a batch
    at a time.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices)
        return {"input": self.images[index], "label": self.labels[index], "index": index}


def unchanged(x: Any) -> Any:
    """What it is given: the collate function of :class:`InMemory`, whose batches are whole
    already.
    """
    return x


def labels_of(dataset: Any) -> Tensor:
    """All labels of a source's data set ``[N, ...]``, in its order."""
    labels: Tensor = dataset.labels
    return labels
