"""Whatever a batch is nested in, its samples are selected alike everywhere in it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pfb.selection.nested import copied, leaves
from pfb.selection.select import select

ITEMS = {
    "metas": lambda i: {"file": f"{i}.jpg", "size": (480, 640)},
    "boxes": lambda i: {"boxes": torch.full((i % 2 + 1, 7), float(i)), "crowd": None},
    "ragged": lambda i: [i] * (i % 3),
    "0-d": lambda i: torch.tensor(float(i)),
    "sometimes": lambda i: None if i % 2 else {"i": i},
    "kinds": lambda i: [[0.0, 1.0]] if i % 2 else {"counts": "x"},
}
"""One item per sample, of which none holds a tensor of as many rows as there are samples."""

plain = st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3), st.just(torch.tensor(0.5)))
tensors = st.tuples(st.just("rows"), st.lists(st.integers(0, 3), max_size=2))
items = st.tuples(st.just("items"), st.sampled_from(sorted(ITEMS)))
# Two values at most in a list: it must not be as long as the batch of three samples or more.
blueprints = st.recursive(
    st.one_of(tensors, items, st.tuples(st.just("plain"), plain)),
    lambda inner: st.one_of(
        st.tuples(st.just("list"), st.lists(inner, max_size=2)),
        st.tuples(st.just("tuple"), st.lists(inner, max_size=2)),
        st.tuples(st.just("dict"), st.dictionaries(st.text(max_size=2), inner, max_size=3)),
    ),
    max_leaves=8,
)


@st.composite
def selections(draw):
    n = draw(st.integers(3, 9))
    return n, sorted(draw(st.sets(st.integers(0, n - 1), max_size=n - 1)))


def built(blueprint, samples):
    """The tree of these samples only: what selecting from that of all must give."""
    kind, what = blueprint
    if kind == "rows":
        return torch.tensor(samples).view(-1, *[1] * len(what)).expand(-1, *what)
    if kind == "items":
        return [ITEMS[what](i) for i in samples]
    if kind == "plain":
        return what
    if kind == "dict":
        return {key: built(inner, samples) for key, inner in what.items()}
    return (list if kind == "list" else tuple)(built(inner, samples) for inner in what)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a is b or a == b


@given(blueprints, selections())
def test_selecting_from_all_samples_gives_the_tree_of_the_kept_ones(blueprint, selection):
    n, kept = selection
    tree = built(blueprint, list(range(n)))
    indices = torch.tensor(kept, dtype=torch.int64)
    seen = {}
    for _ in range(2):  # what is learned from one batch changes nothing for the next
        assert same(select(tree, indices, n, seen=seen), built(blueprint, kept))
    assert same(tree, built(blueprint, list(range(n)))), "the tree itself is left alone"


@given(blueprints, st.integers(3, 9))
def test_all_samples_are_the_tree_itself(blueprint, n):
    tree = built(blueprint, list(range(n)))
    assert select(tree, torch.arange(n), n) is tree


@given(blueprints, st.integers(3, 9))
def test_writing_to_a_copy_leaves_the_tree_alone(blueprint, n):
    tree = built(blueprint, list(range(n)))
    twin = copied(tree, torch.clone)
    assert same(twin, tree)
    for x in leaves(twin):
        x.fill_(-1)
    assert same(tree, built(blueprint, list(range(n))))
