"""A rule within each class."""

from __future__ import annotations

import torch
from torch import Tensor

from pfb.density.moving_centers import DensityEstimator
from pfb.selection.rules import Importance, RareFirst, Reads, reads_of


class PerClass:
    """Another rule within each class: every class keeps the share that the batch keeps.

    Where density differs between classes, a rule over the whole batch starves some of them. This
    one ranks a sample among those of its own class. It must be shown the labels before each forward
    that prunes: ``importance.see(y)``.

    Args:
        importance: what ranks the samples of a class; default :class:`RareFirst`.

    Raises:
        RuntimeError: it is asked without having been shown this batch's labels.
        ValueError: labels of another length or form.

    Example:
        >>> import torch, pfb
        >>> rule = PerClass(lambda features: features[:, 0])
        >>> rule.see(torch.tensor([0, 0, 0, 0, 1, 1]))
        >>> x = torch.tensor([[9.0], [8.0], [7.0], [6.0], [1.0], [2.0]])
        >>> rule(x, None).topk(3).indices.sort().values
        tensor([0, 1, 5])
    """

    def __init__(self, importance: Importance | None = None) -> None:
        self.importance: Importance = RareFirst() if importance is None else importance
        self.reads: Reads = reads_of(self.importance)
        self._labels: Tensor | None = None

    def see(self, labels: Tensor) -> None:
        """Show the classes ``[N]`` (whole numbers) of the batch that goes forward next."""
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(
                f"`labels` must be classes [N] (got shape {tuple(labels.shape)}, {labels.dtype}); for mixup or soft "
                "labels pass the most likely class"
            )
        self._labels = labels

    def __call__(self, features: Tensor, estimator: DensityEstimator | None = None) -> Tensor:
        labels, self._labels = self._labels, None
        if labels is None:
            raise RuntimeError("PerClass needs the labels of the batch: call `importance.see(y)` before each forward")
        if len(labels) != len(features):
            raise ValueError(f"PerClass was shown {len(labels)} labels for a batch of {len(features)}")
        importance_N = self.importance(*((features, estimator) if self.reads == "density" else (features,)))
        same_NN = labels[:, None] == labels
        rank_N = (same_NN & (importance_N > importance_N[:, None])).sum(1)
        # The random part of a rank decides between classes whose ranks fall on the same place.
        return -(rank_N + torch.rand_like(importance_N)) / same_NN.sum(1)
