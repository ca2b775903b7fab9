"""What samples are judged by: a function from some part of a batch to one vector per sample.

Shape suffixes: N samples, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pfb.selection.nested import places


class Features:
    """Features ``[N, D]`` float32 of the part of a batch that samples are judged by.

    Attributes:
        name: what a saved state calls them; it can be loaded with the same only.
    """

    name = "callable"

    def candidates(self, batch: Any) -> Iterator[tuple[str, Any]]:
        """Path and value of each part of a batch that they know, the best first."""
        raise NotImplementedError

    def __call__(self, x: Any) -> Tensor:
        """Features of such a part."""
        raise NotImplementedError

    def own_view(self, x: Any, generator: torch.Generator | None = None) -> Tensor | None:
        """Features of a slightly changed view of each sample, or ``None`` where none is known."""
        return None

    def refusal(self, batch: Any) -> str:
        """Why a batch has no such part, and what to do."""
        return "the batch holds no tensor of samples: pass `by=`, the tensor to judge them by, [N, ...]"


class FromFunction(Features):
    """Features by a function of the user's, of the first tensor in a batch or of what ``by=``
    names.

    Args:
        read: from that to ``[N, D]``.
    """

    def __init__(self, read: Callable[[Any], Tensor]) -> None:
        self.read = read

    def candidates(self, batch: Any) -> Iterator[tuple[str, Any]]:
        yield from islice(((path, x) for path, x in places(batch) if isinstance(x, Tensor) and x.dim() > 0), 1)

    @torch.no_grad()
    def __call__(self, x: Any) -> Tensor:
        return checked_features(self.read(x), "`features`")


def checked_features(features: Any, who: str) -> Tensor:
    """Features ``[N, D]`` as float32, without graph.

    Raises:
        ValueError: something else was returned.
    """
    if not isinstance(features, Tensor) or features.dim() != 2:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"{who} must return a tensor [N, D] (got {got})")
    return features.detach().float()
