"""An approximate index finds what comparing all pairs finds."""

import sys

import pytest
import torch

from pfb.copies import near_duplicates
from pfb.copies.near_duplicates import find_copies


def scenes():
    x = torch.cat([torch.randn(60, 16).repeat_interleave(12, 0), torch.randn(3280, 16)])
    return (x + 0.01 * torch.randn_like(x))[torch.randperm(4000)]


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(near_duplicates, "MOST_COMPARED", 100)
    with pytest.raises(ImportError, match=r"pip install \"torch-pfb\[index\]\"; or pass exact=True"):
        find_copies(torch.randn(200, 4))
    assert find_copies(torch.randn(200, 4), exact=True).groups == ()


def test_the_index_finds_the_groups_of_all_pairs():
    pytest.importorskip("faiss")
    x = scenes()
    x[100], x[7] = x[200], float("nan")
    some, every = find_copies(x, exact=False), find_copies(x, exact=True)
    assert (some.near == every.near).float().mean() > 0.999
    assert {frozenset(group) for group in some.groups} == {frozenset(group) for group in every.groups}
    assert (some.nearest == every.nearest).float().mean() > 0.95
    assert (some.alike == every.alike).float().mean() > 0.99
    assert (some.distance - every.distance).abs()[some.near].max() < 0.1
    assert some.unclear == pytest.approx(every.unclear, abs=0.01)


def test_groups_of_equal_rows_and_groups_larger_than_the_list_of_neighbours():
    pytest.importorskip("faiss")
    single = torch.randn(1500, 16)
    x = torch.cat([single, single[:1].repeat(900, 1), single[1:2] + 0.01 * torch.randn(300, 16)])
    rows = []
    copies = find_copies(x, exact=False, on_rows=rows.append)
    assert [len(group) for group in copies.groups] == [901, 301]
    assert copies.alike[0] == 901
    assert (x[copies.nearest[1500:2400]] == x[0]).all()
    assert (copies.nearest != torch.arange(len(x))).all()
    assert rows[-1] == len(x)


def test_of_few_or_equal_rows_all_is_found():
    pytest.importorskip("faiss")
    assert [len(group) for group in find_copies(torch.ones(300, 6), exact=False).groups] == [300]
    assert find_copies(torch.randn(200, 6), exact=False).groups == ()


def test_it_finds_the_same_again():
    pytest.importorskip("faiss")
    x = scenes()
    assert find_copies(x, exact=False).groups == find_copies(x, exact=False).groups
