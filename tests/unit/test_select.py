"""Selecting from nested batches."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from pfb.selection.select import select

KEPT = torch.tensor([1, 3])
N = 4


def leaf():
    return torch.arange(N) * 10


Pair = namedtuple("Pair", "a b")


@dataclass(frozen=True)
class Target:
    label: torch.Tensor
    name: str


def test_named_tuples_ordered_dicts_and_dataclasses_keep_their_type():
    tree = OrderedDict(pair=Pair(leaf(), 3), target=Target(leaf(), "x"))
    out = select(tree, KEPT, N)
    assert isinstance(out, OrderedDict)
    assert isinstance(out["pair"], Pair)
    assert out["pair"].a.tolist() == [10, 30]
    assert out["target"] == Target(out["target"].label, "x")
    assert out["target"].label.tolist() == [10, 30]


def test_mappings_of_other_kinds():
    from transformers import BatchEncoding

    encoding = select(BatchEncoding({"input_ids": torch.zeros(N, 7)}), KEPT, N)
    assert isinstance(encoding, BatchEncoding)
    assert encoding["input_ids"].shape == (2, 7)
    assert select(MappingProxyType({"y": leaf()}), KEPT, N)["y"].tolist() == [10, 30]


def test_model_outputs():
    from transformers.modeling_outputs import BaseModelOutput

    out = select(BaseModelOutput(last_hidden_state=torch.zeros(N, 5, 8)), KEPT, N)
    assert out.last_hidden_state.shape == (2, 5, 8)
    assert out[0].shape == (2, 5, 8)


def test_mixup_pairs_and_soft_labels():
    y_a, y_b, lam = select((leaf(), leaf().flip(0), 0.3), KEPT, N)
    assert (y_a.tolist(), y_b.tolist(), lam) == ([10, 30], [20, 0], 0.3)
    assert select(torch.eye(N), KEPT, N).tolist() == torch.eye(N)[KEPT].tolist()


def test_the_input_is_not_changed():
    tree = {"y": [leaf()]}
    select(tree, KEPT, N)
    assert tree["y"][0].tolist() == leaf().tolist()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_memory_format_is_kept(memory_format):
    x = torch.randn(N, 3, 5, 6).to(memory_format=memory_format)
    out = select(x, KEPT, N)
    assert out.is_contiguous(memory_format=memory_format)
    assert torch.equal(out, x[KEPT])


def test_memory_format_is_kept_for_video():
    x = torch.randn(N, 3, 2, 5, 6).to(memory_format=torch.channels_last_3d)
    out = select(x, KEPT, N)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(out, x[KEPT])


def test_gradients_pass():
    x = torch.randn(N, 2, requires_grad=True)
    select(x, KEPT, N).sum().backward()
    assert x.grad.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]


class TestOneItemPerSample:
    """A list as long as the batch that holds no batched tensor has one item per sample."""

    @pytest.mark.parametrize(
        "items",
        [
            [{"file": f"{i}.jpg", "shape": (480, 640)} for i in range(N)],
            [{"boxes": torch.zeros(i + 1, 4), "labels": torch.zeros(i + 1)} for i in range(N)],
            [[1] * i for i in range(N)],
            [torch.zeros(i + 1) for i in range(N)],
            [torch.tensor(float(i)) for i in range(N)],
            [None] * N,
            [None, {"a": 1}, None, {"a": 2}],
            [[[0, 0, 1]], {"counts": "x"}, [[0, 1]], {"counts": "y"}],  # polygons, and a coded mask
            [Path(f"{i}.jpg") for i in range(N)],
            [object() for _ in range(N)],
            [torch.zeros(3, 8 + i, 8) for i in range(N)],
        ],
        ids=["metas", "boxes", "ragged", "rows", "0-d", "none", "some", "kinds", "paths", "objects", "images"],
    )
    @pytest.mark.parametrize("kind", [list, tuple])
    def test_it_is_selected(self, items, kind):
        out = select({"items": kind(items)}, KEPT, N)["items"]
        assert type(out) is kind
        assert [id(item) for item in out] == [id(items[i]) for i in KEPT.tolist()]

    @pytest.mark.parametrize(
        "items", [["a", "b", "c", "d"], [1, 2.5, 3, 4], (1, "b", 2.0, True)], ids=["names", "numbers", "mixed"]
    )
    def test_plain_values_are_refused_since_they_may_be_of_all(self, items):
        with pytest.raises(TypeError, match=r"`batch` holds 4 plain values for 4 samples.*Make it a tensor"):
            select(items, KEPT, N)

    def test_as_many_batches_as_samples_are_refused(self):
        with pytest.raises(TypeError, match="4 items with tensors of 4 rows for 4 samples"):
            select([torch.zeros(N, 2)] * N, KEPT, N)

    def test_known_from_another_batch_they_are_batches(self):
        seen = {}
        select([torch.zeros(6, 2)] * N, torch.tensor([0]), 6, seen=seen)
        out = select([torch.zeros(N, 2)] * N, KEPT, N, seen=seen)
        assert [x.shape for x in out] == [(2, 2)] * N

    def test_three_images_of_three_channels_are_three_samples(self):
        images = [torch.rand(3, 8, 8) for _ in range(3)]
        assert select(images, torch.tensor([0, 2]), 3)[1] is images[2]

    def test_a_size_that_a_last_batch_is_as_long_as_stays(self):
        seen = {}
        for n in (6, 4):
            assert select((1, 8, 8, 3), torch.tensor([0, 1]), n, seen=seen) == (1, 8, 8, 3)

    def test_lists_of_two_kinds_in_one_place_tell_nothing_of_each_other(self):
        """Targets, and mixup's triple, selected in turn."""
        seen, metas = {}, [{"id": i} for i in range(N)]
        select((leaf(), leaf(), 0.3), KEPT, N, seen=seen)
        assert select(metas, KEPT, N, seen=seen) == [{"id": 1}, {"id": 3}]

    def test_one_item_too_few_is_noticed_once_they_are_known(self):
        seen, metas = {}, [{"id": i} for i in range(N)]
        select(metas, KEPT, N, seen=seen)
        with pytest.raises(ValueError, match="held one item per sample until now, and has 3 for 4"):
            select(metas[:3], KEPT, N, seen=seen)

    def test_a_last_batch_in_which_all_go_on_is_left_alone(self):
        tree = {"size": (16, 16), "names": ["a", "b"], "array": np.zeros(2)}
        assert select(tree, torch.arange(2), 2) is tree


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"a": [leaf(), torch.zeros(3)]}, ValueError, r"`batch\['a'\]\[1\]`.*4 samples.*\(3,\)"),
        (Target(torch.zeros(5), "x"), ValueError, r"`batch.label`"),
        (np.zeros(N + 1), ValueError, r"`batch`.*4 samples.*\(5,\)"),
        ({1, 2}, TypeError, "set"),
    ],
)
def test_what_cannot_be_indexed_is_refused(tree, error, message):
    with pytest.raises(error, match=message):
        select(tree, KEPT, N)
