"""What a model is asked: a class per image, per pixel, or the next token. All end in logits ``[N,
classes, ...]``.

Targets are ``[N]``, ``[N, H, W]`` or ``[N, T]`` class indices, or soft labels ``[N, classes]``; the
mean over everything but samples gives one loss and one accuracy per sample, so that the loop is the
same for all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def logits_of(output: Any, target: Tensor) -> Tensor:
    """Logits ``[N, classes, ...]`` in the target's form, from what a library's model returns.

    Takes a tensor, torchvision's ``{"out": ...}`` or an object with ``.logits``; brings the classes
    of a language model ``[N, T, V]`` to dimension 1 and a coarse segmentation to the target's
    resolution.

    Example:
        >>> import torch
        >>> logits_of({"out": torch.zeros(2, 3, 8, 8)}, torch.zeros(2, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """
    logits: Tensor
    if isinstance(output, Tensor):
        logits = output
    else:
        logits = output["out"] if isinstance(output, dict) and "out" in output else output.logits
    if logits.dim() == 3 and target.dim() == 2:
        return logits.transpose(1, 2)
    if logits.dim() == 4 and target.dim() == 3 and logits.shape[2:] != target.shape[1:]:
        return F.interpolate(logits.float(), size=target.shape[1:], mode="bilinear", align_corners=False)
    return logits


def losses(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each sample, ``[N]``: the mean over its pixels or tokens."""
    each = F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
    return each if each.dim() == 1 else each.flatten(1).mean(1)


def accuracies(logits: Tensor, target: Tensor) -> Tensor:
    """The share of each sample's pixels or tokens that is right, ``[N]``; 0 or 1 for a class."""
    right = (logits.argmax(1) == target).float()
    return right if right.dim() == 1 else right.flatten(1).mean(1)


def among_first(logits: Tensor, target: Tensor, k: int) -> Tensor:
    """Whether each sample's class is among the ``k`` most likely ones: 0 or 1, ``[N]``.

    Example:
        >>> import torch
        >>> among_first(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.tensor([1, 2]), 2)
        tensor([1., 0.])
    """
    return (logits.topk(k, dim=1).indices == target[:, None]).any(1).float()


def confusion(logits: Tensor, target: Tensor, classes: int) -> Tensor:
    """How often class i (row) was taken for class j (column) in each sample, ``[N, classes,
    classes]`` float64.
    """
    n = target.size(0)
    sample = torch.arange(n, device=target.device).view(n, *[1] * (target.dim() - 1))
    pairs = (sample * classes + target) * classes + logits.argmax(1)
    return torch.bincount(pairs.flatten(), minlength=n * classes**2).view(n, classes, classes).double()


def mean_iou(confusion_CC: Tensor) -> float:
    """Intersection over union, averaged over the classes that occur.

    Example:
        >>> import torch
        >>> found = torch.tensor([[3.0, 1.0], [0.0, 4.0]], dtype=torch.float64)
        >>> mean_iou(found)  # (3 / 4 + 4 / 5) / 2
        0.775
    """
    right = confusion_CC.diag()
    union = confusion_CC.sum(0) + confusion_CC.sum(1) - right
    return float((right[union > 0] / union[union > 0]).mean())
