"""What belongs to a batch as a whole and looks as if it had a row per sample, or nothing of it.

Detection data give ``[M, 5]`` targets of a whole batch whose first column counts the images, or
``batch_idx [M]`` beside ``boxes [M, 4]``; point clouds give ``[M, 3]`` points and the cloud of
each. Where M is the number of samples by chance, a selection would pair them with the wrong ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfb.features.judged import as_tensor
from pfb.model.inputs import LABELS
from pfb.selection.nested import is_list, key_of, places
from pfb.selection.select import Declared, is_array

LEAST = 4  # rows; of fewer it cannot be told whether they count samples
LEAST_PERMUTED = 16  # rows; so many are hit once each by no accident
COUNTERS = ("batch", "batch_idx", "batch_index", "image_idx", "img_idx", "ptr")
# Names by which libraries call the sample that each row belongs to.
PACKED = "says where texts begin in rows of several, which cannot be left out: prune before the texts are packed"
COUNTED = "counts the whole batch, and what is divided by it comes out too small: count after pruning"
BY_NAME = {"cu_seqlens": PACKED, "cu_seq_lens": PACKED}
BY_NAME |= dict.fromkeys(("num_items_in_batch", "ntokens", "nsentences"), COUNTED)
# Names that begin so are what libraries call things that no sample is left out of.


def refuse(batch: Any, judged: str, value: Any, n: int, declared: Declared) -> None:
    """Look at a batch of n samples, judged by a value at some path; waits for the device.

    Raises:
        ValueError: something tells by its name or its values that rows are no samples, or that it
            counts what is left out, too.
    """
    are_points = isinstance(value, Tensor) and value.dim() == 2 and value.size(1) in (2, 3, 4)
    for path, x in places(batch):
        name = key_of(path)
        if name in declared.names or path == judged:
            continue
        if why := next((why for begins, why in BY_NAME.items() if name.startswith(begins)), ""):
            raise ValueError(f"`{path}` {why}. If it is something else, say so: `shared=({name!r},)`.")
        x = as_tensor(x) if is_array(x) or (name in COUNTERS and is_list(x)) else x
        if not isinstance(x, Tensor) or x.is_nested or x.layout != torch.strided or x.dim() == 0:
            continue
        counts = name in COUNTERS and x.dim() == 1 and len(x) > 0 and bool((x >= 0).all() and (x < n).all())
        may_be_flat = x.dim() > 1 or (are_points and len(x) == n and name not in LABELS)
        if counts or (may_be_flat and looks_flat(x, n)):
            raise ValueError(
                f"`{path}` of shape {tuple(x.shape)} looks like a flat list that says which sample each row belongs "
                "to: selecting its rows would pair them with the wrong samples. Give a list with one tensor per "
                f"sample; or, if it has one row per sample, say so: `items=({name!r},)`, or if all samples share it: "
                f"`shared=({name!r},)`."
            )
        is_target = name in LABELS or (path == "batch[1]" and len(batch) == 2)
        if len(x) == n and path != "batch" and not is_target and is_permutation(x, n):
            raise ValueError(
                f"`{path}` holds the numbers 0 to {n - 1} in another order, like row numbers of the whole batch "
                "(partners for mixup), which point to other rows, or none, once samples are left out. Draw them after "
                f"pruning; or, if they are something else, say so: `items=({name!r},)`."
            )


def looks_flat(x: Tensor, n: int) -> bool:
    """Whether a tensor says which of n samples each row belongs to: a first column, or the whole,
    of whole numbers below n, sorted; of a column at least half occur, of a vector those up to the
    last, most of them more than once.

    Example:
        >>> looks_flat(torch.tensor([[0, 7], [0, 9], [2, 7], [3, 1]]), 4)
        True
        >>> looks_flat(torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]), 8)
        True
        >>> looks_flat(torch.tensor([1, 0, 0, 2]), 4)
        False
    """
    rows, is_vector = len(x), x.dim() == 1
    if min(n, rows) < LEAST or x.is_complex() or x.dtype == torch.bool or (is_vector and x.is_floating_point()):
        return False
    if not is_vector and (x.dim() > 2 or x.size(1) < 2):
        return False
    first = x.reshape(rows, -1)[:, 0].detach().double()
    if not bool((first == first.round()).all() and (first.diff() >= 0).all()):
        return False
    low, high, different = int(first[0]), int(first[-1]), int((first.diff() > 0).sum()) + 1
    if is_vector:
        return low == 0 and different == high + 1 and 2 <= different <= n // 2
    return low >= 0 and high < n and different * 2 >= min(n, rows) and different >= 3  # two may be yes and no


def is_permutation(x: Tensor, n: int) -> bool:
    """Whether a vector holds the numbers of all rows, in another order.

    Example:
        >>> is_permutation(torch.arange(16).flip(0), 16), is_permutation(torch.arange(16), 16)
        (True, False)
    """
    if n < LEAST_PERMUTED or x.dim() != 1 or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        return False
    row_N = torch.arange(n, device=x.device)
    return bool((x.sort().values == row_N).all() and (x != row_N).any())
