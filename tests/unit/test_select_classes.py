"""Batches in classes of the user's own: dataclasses, mappings, and what is no container."""

from collections import OrderedDict, namedtuple
from collections.abc import MutableMapping
from dataclasses import InitVar, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch

from pfb.selection.nested import copied, leaves
from pfb.selection.select import select

KEPT = torch.tensor([1, 3])
N = 4
Pair = namedtuple("Pair", "a b")


def leaf():
    return torch.arange(N) * 10


@dataclass
class Derived:
    """Its constructor would fail, or work on the values once more."""

    x: torch.Tensor
    shift: InitVar[float]
    count: int = field(init=False)

    def __post_init__(self, shift):
        self.x = self.x + shift
        self.count = len(self.x)


@dataclass(frozen=True, slots=True)
class Slotted:
    x: torch.Tensor
    name: str = "s"


@dataclass
class Child(Derived):
    extra: Any = None


class Wrapped(MutableMapping):
    """As tensor dictionaries and configurations are: a mapping that keeps its items in another."""

    def __init__(self, items, name):
        self._items, self.name = items, name

    def __getitem__(self, key):
        return self._items[key]

    def __setitem__(self, key, value):
        self._items[key] = value

    def __delitem__(self, key):
        del self._items[key]

    def __iter__(self):
        return iter(self._items)

    def __len__(self):
        return len(self._items)


class Sized(Wrapped):
    """Refuses values of another batch."""

    def __setitem__(self, key, value):
        raise RuntimeError("batch size")


class Hidden(Wrapped):
    """Its items are where a shallow copy shares them."""

    def __init__(self, items):
        self._box = [items]

    @property
    def _items(self):
        return self._box[0]


class TestClassesOfTheUsers:
    def test_dataclasses_are_copied_without_their_constructor(self):
        for batch in (Derived(leaf(), 1.0), Slotted(leaf()), Child(leaf(), 1.0, extra={"y": leaf()})):
            before = batch.x.clone()
            kept = select(batch, KEPT, N)
            assert type(kept) is type(batch)
            assert torch.equal(kept.x, before[KEPT])
            assert torch.equal(batch.x, before)
        assert kept.extra["y"].tolist() == [10, 30]
        assert kept.count == N, "a number stays what it was"

    def test_a_mapping_around_a_dict_is_copied_and_left_alone(self):
        batch = Wrapped({"x": leaf(), "n": 3}, "train")
        kept = select(batch, KEPT, N)
        assert (type(kept), kept.name, kept["n"]) == (Wrapped, "train", 3)
        assert kept["x"].tolist() == [10, 30]
        assert len(batch["x"]) == N, "the user's own batch"

    def test_a_mapping_that_cannot_be_copied_is_refused_and_left_alone(self):
        for batch in (Sized({"x": leaf()}, "s"), Hidden({"x": leaf()})):
            with pytest.raises(TypeError, match="cannot be copied with other values.*plain dict"):
                select({"batch": batch}, KEPT, N)
            assert len(batch["x"]) == N

    def test_packed_sequences_and_nested_tensors_are_refused(self):
        packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(3), torch.zeros(2)])
        nested = torch.nested.nested_tensor([torch.zeros(i + 1) for i in range(N)], layout=torch.jagged)
        with pytest.raises(TypeError, match="`batch` is a PackedSequence"):
            select(packed, KEPT, N)
        with pytest.raises(TypeError, match="nested tensor"):
            select(nested, KEPT, N)

    def test_enumerations_and_the_like_are_shared(self):
        tree = {"split": Split.TRAIN, "span": slice(0, 3), "range": range(4), "dtype": torch.float32, "file": Path("x")}
        assert select(tree, KEPT, N) == tree


class Split(Enum):
    TRAIN = 1


class TestCopies:
    """What the scoring pass is given: containers of its own, of whatever kind."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda x: [x],
            lambda x: {"x": x},
            lambda x: OrderedDict(x=x),
            lambda x: Pair(x, 0),
            lambda x: Slotted(x),
            lambda x: Wrapped({"x": x}, "w"),
            lambda x: {"deep": [({"x": x},)]},
        ],
    )
    def test_tensors_in_them_are_copies(self, make):
        tree = make(leaf())
        twin = copied(tree, torch.clone)
        for x in leaves(twin):
            x.zero_()
        assert type(twin) is type(tree)
        assert next(leaves(tree)).tolist() == leaf().tolist()

    def test_what_cannot_be_copied_is_passed_on(self):
        tree = Hidden({"x": leaf()})
        assert copied(tree, torch.clone) is tree
        assert copied({"o": tree, "f": open}, torch.clone)["o"] is tree
