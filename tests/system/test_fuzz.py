"""Random calls, each compared with a literal reference: rows belong together, whatever the batch.

A few hundred calls of each tool in every run; 20,000 of each with ``-m slow``.
"""

import contextlib
import copy
import dataclasses
import pickle
import random
import typing
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pfb

QUICK, FULL = 300, 20_000  # calls
amounts = pytest.mark.parametrize("calls", [QUICK, pytest.param(FULL, marks=pytest.mark.slow)])
REFUSED = TypeError, ValueError, RuntimeError


@contextlib.contextmanager
def quiet():
    """Small batches, views and copies come by chance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def told(error, *words):
    """Whether a refusal says one of these words."""
    assert str(error), "an error without a word"
    assert any(word in str(error) for word in words), error


class Fields(typing.NamedTuple):
    a: typing.Any
    b: typing.Any


@dataclasses.dataclass
class Record:
    a: typing.Any
    b: typing.Any


class Batches:
    """Random batches, each with a function from rows to what of it must be kept."""

    DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.complex64)

    def __init__(self, draw):
        self.draw = draw
        self.shapes = {name: self.draw.choice(self.KINDS)(self) for name in "abc"}
        self.container = self.draw.choice((dict, tuple, list, Fields, Record))
        judged = self.draw.choice((self.images, self.vectors, self.tokens, self.sequences))
        self.judged = judged

    # What is judged

    def images(self, n):
        return torch.randn(n, 3, 6, 5)

    def vectors(self, n):
        return torch.randn(n, 7)

    def tokens(self, n):
        return torch.randint(50, (n, 9))

    def sequences(self, n):
        return torch.randn(n, 8, 3)

    # What goes with it: from ids to a value, and from rows to what must be kept

    def tensor(self):
        # Not three dimensions: of 1, 3 or 4 samples, two of them look like two images.
        dtype, inner = (
            self.draw.choice(self.DTYPES),
            [self.draw.randrange(4) for _ in range(self.draw.choice((0, 1, 3)))],
        )

        def make(ids):
            x = (torch.tensor(ids) % 251).to(dtype).view(-1, *(1 for _ in inner)).expand(-1, *inner).clone()
            x = x.to(memory_format=torch.contiguous_format)
            return x, lambda rows: torch.stack([x[i] for i in rows]) if rows else x[:0]

        return make

    def array(self):
        dtype = self.draw.choice((np.float32, np.int64, "U8", bool))

        def make(ids):
            x = np.array(ids).astype(dtype)
            return x, lambda rows: np.array([x[i] for i in rows], dtype=x.dtype)

        return make

    def items(self):
        kind = self.draw.choice((dict, "ragged", list))

        def make(ids):
            made = {
                dict: lambda i: {"id": i, "box": torch.full((i % 3, 4), float(i))},
                "ragged": lambda i: torch.full((1 + i % 5, 2), float(i)),
                list: lambda i: [i] * (i % 4),
            }[kind]
            x = [made(i) for i in ids]
            return x, lambda rows: [x[i] for i in rows]

        return make

    def of_all(self):
        x = self.draw.choice((None, 3, 2.5, "web", torch.tensor(7), True))
        return lambda ids: (x, lambda rows: x)

    KINDS = (tensor, tensor, array, items, of_all)

    def make(self, n):
        """A batch of n samples, what is to be kept of it, and the ids of its rows."""
        ids = [self.draw.randrange(10**6) for _ in range(n)]
        x = self.judged(n)
        parts = {name: make(ids) for name, make in self.shapes.items()}

        def keep(rows):
            got = torch.stack([x[i] for i in rows]) if rows else x[:0]
            return self.joined(got, *(parts[name][1](rows) for name in "abc"))

        return self.joined(x, *(parts[name][0] for name in "abc")), keep

    def joined(self, x, a, b, c):
        if self.container is dict:
            return {"pixels": x, "more": {"a": a}, "b": b, "c": c}
        if self.container in (Fields, Record):
            return self.container(x, self.container(a, (b, c)))
        return self.container([x, a, {"b": b}, c])


def same(a, b):
    """Whether two batches are equal, part by part, types and all."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return a == b


def kept_of(n, prune):
    return max(n - int(n * round(prune * 100) // 100), min(n, 2))


def settings_of(draw):
    rule = draw.choice((None, None, pfb.Uniform(), pfb.RareFirst(), lambda features: features.sum(1)))
    local = rule is None
    return {
        "prune": draw.choice((0.0, 0.1, 0.29, 0.4, 0.5, 0.9, 0.99)),
        "rule": rule,
        "density": pfb.NeighbourMemory(draw.choice((64, 100))) if local else pfb.MovingCenters(draw.choice((2, 8))),
        "seed": draw.randrange(100),
    }


def in_order(rows, n):
    return rows.dtype == torch.int64 and rows.tolist() == sorted({i for i in rows.tolist() if 0 <= i < n})


@amounts
@quiet()
def test_a_pruner_keeps_rows_together(calls):
    draw, done = random.Random(0), 0
    while done < calls:
        batches, settings = Batches(draw), settings_of(draw)
        picklable = not isinstance(settings["rule"], type(lambda: 0))
        ours = pfb.BatchPruner(**settings)
        for _ in range(10):
            n = draw.choice((0, 1, 2, 3, 5, 9, 16, 33))
            batch, keep = batches.make(n)
            what = draw.choice(("call", "call", "call", "paused", "state", "copy", "pickle"))
            if what == "paused":
                with ours.paused():
                    assert ours(batch) is batch
                continue
            if what == "state":
                other = pfb.BatchPruner(**{**settings, "seed": 77, "density": copy.deepcopy(settings["density"])})
                other.load_state_dict(copy.deepcopy(ours.state_dict()))
            else:
                other = pickle.loads(pickle.dumps(ours)) if what == "pickle" and picklable else copy.deepcopy(ours)
            steps = ours.steps
            try:
                kept = ours(batch)
            except TypeError as error:  # a list of n tensors of n rows each cannot be told
                told(error, "not clear", "one per sample")
                assert ours.steps == steps
                continue
            assert ours.steps == steps + 1
            chosen = ours.selection
            rows = list(range(n)) if chosen is None else chosen.indices.tolist()
            assert chosen is None or (in_order(chosen.indices, n) and chosen.batch_size == n)
            assert len(rows) == kept_of(n, settings["prune"])
            assert same(kept, keep(rows)), (kept, rows)
            assert same(other(batch), kept), what
            done += 1


@amounts
@quiet()
def test_a_pruned_loader_loses_nothing_and_doubles_nothing(calls):
    draw, done = random.Random(1), 0
    while done < calls:
        n, size, fill = draw.randrange(4, 60), draw.choice((2, 5, 8, 16)), draw.random() < 0.5
        settings, drop = settings_of(draw), draw.random() < 0.3
        data = TensorDataset(torch.randn(n, 4), torch.arange(100, 100 + n))
        left = []
        order, epochs = draw.random() < 0.5, draw.randrange(1, 4)

        def made(left, settings=settings, data=data, size=size, order=order, drop=drop, fill=fill):
            own = {**settings, "density": copy.deepcopy(settings["density"])}
            generator = torch.Generator().manual_seed(5)
            loader = DataLoader(data, size, shuffle=order, drop_last=drop, generator=generator)
            return pfb.prune_batches(
                loader, own.pop("prune"), fill=fill, on_left_out=lambda b: left.extend(b[1].tolist()), **own
            )

        loader = made(left)
        given, epoch_of, counts = [], [], []
        for epoch in range(epochs):
            loader.loader.generator.manual_seed(epoch)
            expected = len(loader)
            batches = [(x, i) for x, i in loader]
            assert len(batches) == expected, (n, size, drop, fill, settings)
            assert all(torch.equal(x, data.tensors[0][i - 100]) for x, i in batches)
            assert not fill or all(len(i) == size for _, i in batches if n >= size)
            counts.append(len(batches))
            given += [i.tolist() for _, i in batches]
            epoch_of += [epoch] * len(batches)
            done += max(len(batches), 1)
        seen = [i for rows in given for i in rows] + left
        held = loader.state_dict()["held"]
        seen += [] if held is None or not held["held"] else held["rest"][1].tolist()
        used = n // size * size if drop else n
        if order:
            assert len(seen) == used * epochs
            assert drop or sorted(seen) == sorted(list(range(100, 100 + n)) * epochs)
        else:
            assert sorted(seen) == sorted(list(range(100, 100 + used)) * epochs)

        # Broken off somewhere, and resumed: what follows is the same.
        stop = draw.randrange(len(given)) if given else 0
        first, got = made([]), 0
        state = None
        for epoch in range(epochs):
            first.loader.generator.manual_seed(epoch)
            for _ in first:
                got += 1
                if got == stop + 1:
                    state = pickle.loads(pickle.dumps(first.state_dict()))
                    break
            if state is not None:
                break
        if state is None or (fill and got <= stop):
            continue
        second, rest = made([]), []
        second.load_state_dict(state)
        for later in range(epoch, epochs):
            second.loader.generator.manual_seed(later)
            rest += [i.tolist() for _, i in second]
        assert rest == given[stop + 1 :], (n, size, drop, fill, settings, stop)


@amounts
@quiet()
def test_a_blocker_keeps_rows_together(calls):
    draw, done = random.Random(2), 0
    while done < calls:
        model = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))
        settings = settings_of(draw)
        del settings["seed"]
        features = draw.choice(("cut", "cut-spread", lambda output: output.flatten(1)))
        cut = draw.choice(("0", "1", "2"))
        blocker = pfb.attach(model, cut, features=features, **settings)
        plain = copy.deepcopy(model)
        batches = Batches(draw)
        batches.judged = batches.vectors
        for _ in range(20):
            n = draw.choice((1, 2, 3, 5, 9, 16, 33))
            batch, keep = batches.make(n)
            x = torch.randn(n, 7)
            whole = plain(x)
            what = draw.choice(("call", "call", "call", "paused", "eval", "no_grad", "once", "state"))
            if what == "state":
                blocker.load_state_dict(copy.deepcopy(blocker.state_dict()))
            if what in ("paused", "eval", "no_grad"):
                model.train(what != "eval")
                with blocker.paused() if what == "paused" else torch.set_grad_enabled(what != "no_grad"):
                    assert torch.equal(model(x), whole)
                    assert blocker.select(batch) is batch
                model.train()
                continue
            if what == "once":
                with blocker.decide_once():
                    again = model(x)
                    out = model(x)
                assert torch.equal(again, out)
            else:
                out = model(x)
            chosen = blocker.selection
            rows = list(range(n)) if chosen is None else chosen.indices.tolist()
            assert len(rows) == kept_of(n, settings["prune"])
            torch.testing.assert_close(out, whole[rows])
            try:
                assert same(blocker.select(batch), keep(rows))
            except TypeError as error:
                told(error, "not clear")
            if draw.random() < 0.7:
                out.sum().backward()
                blocker.step()
            done += 1
        blocker.detach()
        assert torch.equal(model(x), plain(x))


JUNK = (None, -1, 2, 1.5, float("nan"), "x", object(), [], {}, b"", torch.zeros(3), lambda: 0, int, True, (1, 2))
ARGUMENTS = (
    "prune",
    "rule",
    "features",
    "density",
    "total_steps",
    "views",
    "seed",
    "shared",
    "items",
    "dims",
    "on_left_out",
)


@amounts
@quiet()
def test_wrong_arguments_are_refused_by_name_or_work(calls):
    draw = random.Random(3)
    for _ in range(calls // 10):
        name, junk = draw.choice(ARGUMENTS), draw.choice(JUNK)
        try:
            ours = pfb.BatchPruner(**{name: junk})
        except (TypeError, ValueError) as error:
            told(error, f"`{name}`")
            continue
        try:
            x, y = ours(torch.randn(9, 4), torch.arange(9))
            assert len(x) == len(y)
        except REFUSED as error:
            told(error, *(("",) if callable(junk) else (name,)))  # a function of the user's may fail


def mutated(state, draw):
    """A state with one value somewhere in it replaced or taken out."""
    state = copy.deepcopy(state)
    inside, key = state, draw.choice(list(state))
    while isinstance(inside[key], dict) and inside[key] and draw.random() < 0.8:
        inside, key = inside[key], draw.choice(list(inside[key]))
    if draw.random() < 0.3:
        del inside[key]
    else:
        inside[key] = draw.choice(JUNK)
    return state


@amounts
@quiet()
def test_damaged_states_are_refused_and_change_nothing_or_work(calls):
    draw = random.Random(4)
    data = torch.randn(5, 9, 4)
    for _ in range(calls // 20):
        rule = draw.choice((None, pfb.RareFirst()))
        ours = pfb.BatchPruner(0.5, rule=rule, seed=1)
        for x in data[:2]:
            ours(x, torch.arange(9))
        before = copy.deepcopy(ours)
        try:
            ours.load_state_dict(mutated(ours.state_dict(), draw))
        except REFUSED as error:
            told(error, "state", "density", "memory", "centers")
            assert same(ours(data[2]), before(data[2])), "nothing was changed"
            continue
        try:
            assert len(ours(data[2])) == 5
        except REFUSED as error:
            told(error, "")
