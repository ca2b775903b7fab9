"""Judge samples by what they are, where the model sees them augmented: features of something that
is shown beside each batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from pfb.sketch import Sketch
from pfb.tree import leaves


class Originals:
    """Features of samples as they are stored, for ``attach(features=...)``: strong augmentation
    (cropping to a part, new colors, painted patches, mixing) hides copies from features of the
    model's input.

    Show the originals of every batch before the forward that trains on it; anything with a row for
    each of its samples, in their order: thumbnails, embeddings of another model, the text before
    words were masked. They may lie on another device.

    Args:
        features: from what is shown to ``[N, D]``; by default a :class:`~pfb.sketch.Sketch`.

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

    of: Literal["input"] = "input"

    def __init__(self, features: Callable[[Any], Tensor] | None = None) -> None:
        if features is not None and not callable(features):
            raise TypeError(f"`features` must be a callable to features [N, D] (got {features!r})")
        self._read = Sketch() if features is None else features
        self._shown: Tensor | None = None
        self._batch: Tensor | None = None  # which was judged by what is shown

    @torch.no_grad()
    def show(self, x: Any) -> None:
        """What the next batch is made from, ``[N, ...]``.

        Raises:
            TypeError: nothing that is known to a sketch; the message names the way out.
        """
        self._shown, self._batch = self._read(x), None

    def __call__(self, given: Any) -> Tensor:
        """What was shown for the batch that the model is given, ``[N, D]``; of a batch that is run
        twice the same again.

        Raises:
            RuntimeError: nothing was shown for this batch.
        """
        batch = next(leaves(given))
        if self._shown is None or (self._batch is not None and self._batch is not batch):
            raise RuntimeError(
                "pfb.Originals was shown nothing for this batch. Call `originals.show(x)` before every forward that "
                "trains, where x has a row for each of its samples. What runs the model's forward again in backward "
                "on copies of its inputs (reentrant activation checkpointing around the whole model) does not work "
                "with it: checkpoint the layers inside."
            )
        self._batch = batch
        return self._shown.to(batch.device, non_blocking=True)
