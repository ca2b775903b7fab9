"""Selecting from nested batches."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfb.tree import select

KEPT = torch.tensor([1, 3])
N = 4


def leaf():
    return torch.arange(N) * 10


Pair = namedtuple("Pair", "a b")


@dataclass(frozen=True)
class Target:
    label: torch.Tensor
    name: str


trees = st.recursive(
    st.one_of(st.just("tensor"), st.none(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


def planted(tree):
    """The tree with a fresh tensor wherever it says so."""
    if tree == "tensor":
        return leaf()
    if isinstance(tree, dict):
        return {k: planted(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(planted(v) for v in tree)
    return tree


def check(before, after):
    assert type(before) is type(after)
    if isinstance(before, torch.Tensor):
        assert torch.equal(after, before[KEPT])
    elif isinstance(before, dict):
        assert list(before) == list(after)
        for key in before:
            check(before[key], after[key])
    elif isinstance(before, (list, tuple)):
        assert len(before) == len(after)
        for b, a in zip(before, after, strict=True):
            check(b, a)
    else:
        assert before is after or before == after


@given(trees)
def test_any_nesting_keeps_its_shape(tree):
    tree = planted(tree)
    check(tree, select(tree, KEPT, N))


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


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"a": [leaf(), torch.zeros(3)]}, ValueError, r"`batch\['a'\]\[1\]`.*4 samples.*\(3,\)"),
        (Target(torch.zeros(5), "x"), ValueError, r"`batch.label`"),
        (np.zeros(N), TypeError, "ndarray"),
        ({"ids": ["a", "b", "c", "d"]}, TypeError, r"`batch\['ids'\]`.*select_list"),
        ([1, 2, 3, 4], TypeError, "one per sample"),
        ({1, 2}, TypeError, "set"),
    ],
)
def test_what_cannot_be_indexed_is_refused(tree, error, message):
    with pytest.raises(error, match=message):
        select(tree, KEPT, N)
