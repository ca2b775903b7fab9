"""What the samples of a batch are judged by, and the features of that."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from pfb.features.base import Features
from pfb.features.judged import are_images, as_tensor
from pfb.pruning import flat
from pfb.selection.nested import key_of, leaves, places
from pfb.selection.rules import Reads
from pfb.selection.select import Declared, is_array

log = logging.getLogger("pfb")


class Judge:
    """Finds the judged part of each batch, the same in every one.

    Args:
        features: what they are judged by.
        declared: what the user says of places in the batch.
        reads: what the rule reads; of ``"nothing"`` only the number of samples is found.

    Attributes:
        judged_by: path of that part, once a batch has told.
    """

    def __init__(self, features: Features, declared: Declared, reads: Reads) -> None:
        self.features, self.declared, self.reads = features, declared, reads
        self.judged_by: str | None = None
        self._looked = False

    def judge(self, batch: Any, by: Any) -> tuple[str, Any, Tensor]:
        """Path, value and features ``[N, D]`` of what the samples are judged by.

        Args:
            batch: as :class:`~pfb.pruning.batch_pruner.BatchPruner` is called with.
            by: a key, a function of the batch, the value itself, or ``None``.

        Raises:
            TypeError: nothing in the batch is known to the features.
            ValueError: no such key; or a part of the batch looks like samples and is none.
        """
        path, value, features_ND = self._found(batch) if by is None else self._named(batch, by)
        if not self._looked:
            self._look(batch, path, value, len(features_ND))
        return path, self._samples_first(value, path), features_ND

    def count(self, batch: Any) -> int:
        """Samples in a batch that is not judged.

        Raises:
            TypeError: nothing in it is known to the features.
        """
        found = next(iter(self._candidates(batch)), None)
        if found is None:
            raise TypeError(f"the samples of this batch cannot be counted: {self.features.refusal(batch)}")
        return self._rows(*found)

    def _candidates(self, batch: Any) -> list[tuple[str, Any]]:
        found = [one for one in self.features.candidates(batch) if key_of(one[0]) not in self.declared.shared]
        if not found and self.reads == "nothing":
            found = [("batch", x) for x in leaves(batch) if x.dim() > 0][:1]
        return found

    def _rows(self, path: str, value: Any) -> int:
        x = _first_batched(value)
        if are_images(value) or x is None:
            return len(value)
        return x.size(self.declared.dims.get(key_of(path), 0))

    def _found(self, batch: Any) -> tuple[str, Any, Tensor]:
        found = self._candidates(batch)
        # Of three samples the part that was judged before may look like images.
        if self.judged_by not in (None, "batch", *(path for path, _ in found)):
            found = [one for one in places(batch) if one[0] == self.judged_by][:1] or found
        if not found:
            raise TypeError(f"samples of this batch cannot be judged: {self.features.refusal(batch)}")
        path, value = next((one for one in found if one[0] == self.judged_by), found[0])
        features_ND = self._read(value, path)
        if self.judged_by is None and len(found) > 1:
            is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
            path, value, features_ND = self._tells_apart(found, features_ND, is_pair)
        if path != self.judged_by and len(features_ND):
            self.judged_by = path
            log.info("pfb judges samples by %s", path)
        return path, value, features_ND

    def _tells_apart(self, found: list[tuple[str, Any]], first_ND: Tensor, is_pair: bool) -> tuple[str, Any, Tensor]:
        """Of several parts the first by which most samples differ; waits for the device, once."""
        for path, value in found:
            if is_pair and path == "batch[1]" and path != found[0][0]:
                continue  # a target tells samples apart, too
            features_ND = first_ND if path == found[0][0] else self._read(value, path)
            if len(features_ND) != len(first_ND) or features_ND.numel() == 0:
                continue
            if len(torch.unique(features_ND, dim=0)) * 2 > len(features_ND):
                return path, value, features_ND
        return *found[0], first_ND

    def _read(self, value: Any, path: str) -> Tensor:
        if self.reads == "nothing":
            x = _first_batched(value)
            return torch.zeros(self._rows(path, value), 1, device="cpu" if x is None else x.device)
        features = self.features(self._samples_first(value, path))
        if features.dim() != 2:
            raise ValueError(f"features must be [N, D] (got shape {tuple(features.shape)})")
        return features

    def _samples_first(self, value: Any, path: str) -> Any:
        dim = self.declared.dims.get(key_of(path), 0)
        return value.movedim(dim, 0) if dim and isinstance(value, Tensor) else value

    def _named(self, batch: Any, by: Any) -> tuple[str, Any, Tensor]:
        if isinstance(by, (str, int)) and not isinstance(by, bool):
            found = [(path, value) for path, value in places(batch) if path != "batch" and key_of(path) == str(by)]
            if not found:
                names = ", ".join(repr(key_of(path)) for path, _ in places(batch) if path != "batch")
                raise ValueError(f"`by` must name a part of the batch (got {by!r}; there are {names or 'none'})")
            path, value = found[0]
        else:
            path, value = "`by`", by(batch) if callable(by) and not isinstance(by, Tensor) else by
        value = as_tensor(value) if is_array(value) else value
        return path, value, self._read(value, path)

    def _look(self, batch: Any, path: str, value: Any, n: int) -> None:
        """Once, at the first pruned batch: what looks like samples and is none."""
        known = {key_of(place) for place, _ in places(batch)}
        unknown = sorted(self.declared.names - known)
        if unknown:
            raise ValueError(
                f"`shared`, `items` and `dims` must name parts of the batch (got {unknown[0]!r}; there are "
                f"{', '.join(sorted(map(repr, known - {''}))) or 'none'})"
            )
        flat.refuse(batch, path, value, n, self.declared)
        self._looked = True


def _first_batched(value: Any) -> Tensor | None:
    """The first tensor in it that may have one row per sample."""
    return next((x for x in leaves(value) if x.dim() > 0), None)
