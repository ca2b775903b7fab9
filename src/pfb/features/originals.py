"""Judge samples by what they are, where the model sees them augmented: features of something that
is shown beside each batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from pfb.features.cut import Features, checked_features
from pfb.features.sketch import Sketch
from pfb.selection.nested import leaves


class Originals(Features):
    """Features of samples as they are stored, for ``attach(features=...)``: strong augmentation
    (cropping to a part, new colors, painted patches, mixing) hides copies from features of the
    model's input.

    Show the originals of a batch right before the forward that trains on it, each time; in the
    loop, since loaders and their collate functions run ahead. They have a row for each row of the
    batch, in its order and in their first dimension, and may lie on another device: thumbnails, or,
    with a function of your own, embeddings of another model, or texts before words were masked. A
    forward in training uses them up, pruned or not; evaluations and paused forwards do not.

    Args:
        features: from what is shown to ``[N, D]``; by default a :class:`~pfb.features.sketch.Sketch`.

    Example:
        >>> import torch, pfb
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
        >>> originals = pfb.Originals()
        >>> blocker = pfb.attach(model, "0", prune=0.4, features=originals)
        >>> x, y = torch.randn(10, 4), torch.randint(3, (10,))
        >>> originals.show(x)
        >>> output = model(x + torch.randn(10, 4))
        >>> torch.nn.functional.cross_entropy(output, blocker.select(y)).backward()
        >>> blocker.step()
    """

    name = "originals"
    of: Literal["cut", "input"] = "input"
    repeatable = False

    def __init__(self, features: Callable[[Any], Tensor] | None = None) -> None:
        if features is not None and (isinstance(features, type) or not callable(features)):
            raise TypeError(f"`features` must be a callable to features [N, D] (got {features!r})")
        self._read = features
        self._shown: Tensor | None = None
        self._awaited = False  # has no forward in training begun since?
        self._warned = False

    @torch.no_grad()
    def show(self, x: Any) -> None:
        """What the next batch is made from, ``[N, ...]``.

        Raises:
            TypeError: nothing that is known to a sketch; the message names the way out.
            ValueError: features of another shape than ``[N, D]``.
        """
        if self._awaited and not self._warned:
            self._warned = True
            warnings.warn(
                "pfb: Originals.show() was called twice without a forward that trains in between, so the first "
                "originals are forgotten. Where a loader or a collate function shows them, it runs ahead of the "
                "model: show them in the loop, right before the forward.",
                stacklevel=2,
            )
        features_ND = checked_features(self._features(x), "the function of pfb.Originals")
        self._shown, self._awaited = features_ND.clone(), True  # what is shown may change in place

    def __call__(self, given: Any) -> Tensor:
        """What was shown for the batch that the model is given, ``[N, D]``.

        Raises:
            RuntimeError: nothing was shown for this batch.
        """
        if self._shown is None:
            raise RuntimeError(
                "pfb.Originals was shown nothing for this batch. Call `originals.show(x)` before every forward that "
                "trains, where x has a row for each row of the batch."
            )
        features_ND, self._shown, self._awaited = self._shown, None, False
        device = next((x.device for x in leaves(given)), features_ND.device)
        return features_ND.to(device, non_blocking=device.type != "cpu")

    def passed_by(self, trained: bool) -> None:
        self._awaited = False
        if trained:
            self._shown = None

    def _features(self, x: Any) -> Tensor:
        if self._read is not None:
            return self._read(x)
        try:
            return Sketch()(x)
        except TypeError as error:
            raise TypeError(
                f"pfb.Originals reads what it is shown by a sketch, which knows images [N, C, H, W] or a list of them, "
                f"token numbers [N, T], sequences [N, T, F] and vectors [N, F] ({error}). For anything else pass a "
                "function: `pfb.Originals(lambda x: ...)` that returns [N, D]"
            ) from error
