"""The shallow pass is reused: what is refused beside the cut's own input."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import pfb
from tests import zoo


def test_it_fails_loudly_where_an_input_bypasses_the_cut():
    model = zoo.Bypass()
    with pfb.attach(model, "shallow", 0.9, shared=("gain",)):
        with pytest.raises(RuntimeError, match="size") as failed:
            model(torch.randn(10, 6), gain=torch.rand(10))
        assert "pfb.BatchPruner(features=pfb.Shallow(model, 'shallow')" in failed.value.__notes__[0], "the way out"
        with pytest.raises(TypeError) as failed:
            model(torch.randn(10, 6), gian=None)
        assert not hasattr(failed.value, "__notes__"), "an error of another origin is left alone"


def test_other_hooks_on_the_cut_see_what_goes_on():
    model, seen = zoo.mlp(6, 8, 3), []
    model[0].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    with pfb.attach(model, "0", 0.5):
        model(torch.randn(10, 6))
    assert seen == [5]


def test_channels_last_is_kept_through_the_cut():
    model = zoo.SmallNet().to(memory_format=torch.channels_last)
    formats = []
    model.layer2.register_forward_pre_hook(
        lambda m, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    with pfb.attach(model, "layer1", 0.5):
        model(torch.randn(8, 3, 8, 8).to(memory_format=torch.channels_last))
    assert formats == [True]


class TwoTowers(nn.Module):
    """In-batch negatives: scores are products between samples."""

    def __init__(self, how="product"):
        super().__init__()
        self.how = how
        self.query = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        self.passage = nn.Linear(6, 4)

    def forward(self, query, passage):
        a, b = self.query(query), self.passage(passage)
        if self.how == "product":
            return nn.functional.cross_entropy(a @ b.T, torch.arange(len(a)))
        if self.how == "zip":
            return torch.stack([p @ q for p, q in zip(a, b, strict=False)]).mean()
        return a.gather(1, passage[: len(a), :1].abs().long() % 4).mean()


@pytest.mark.parametrize("how", ["product", "zip", "gather"])
@pytest.mark.parametrize("call", ["positional", "keyword", "mapping", "tuple", "dataclass"])
def test_what_would_be_paired_with_the_wrong_samples_is_refused(how, call):
    """None of these clashes in its shape, so that it would be silently wrong."""
    towers = TwoTowers(how)
    query, passage = torch.randn(10, 6), torch.randn(10, 6)

    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.towers = towers

        def forward(self, batch):
            if isinstance(batch, Pair):
                return self.towers(batch.query, batch.passage)
            return self.towers(*batch) if isinstance(batch, tuple) else self.towers(**batch)

    model = towers if call in ("positional", "keyword") else Given()
    both = {"query": query, "passage": passage}
    arguments, keywords = {
        "positional": ((query, passage), {}),
        "keyword": ((), both),
        "mapping": ((both,), {}),
        "tuple": (((query, passage),), {}),
        "dataclass": ((Pair(query, passage),), {}),
    }[call]
    cut = "query.0" if model is towers else "towers.query.0"
    with (
        pfb.attach(model, cut),
        pytest.raises(ValueError, match="still holds the whole batch.*pfb.BatchPruner"),
    ):
        model(*arguments, **keywords)
    pruner = pfb.BatchPruner(0.4, features=pfb.Shallow(model, cut), rule=pfb.RareFirst())
    if arguments and call not in ("mapping", "tuple", "dataclass"):
        given = pruner(*arguments, by=arguments)
        loss = model(*given)
    elif keywords:
        loss = model(**pruner(keywords))
    else:
        loss = model(pruner(arguments[0], by=arguments))
    kept = pruner.selection.indices
    torch.testing.assert_close(loss, towers(query[kept], passage[kept]))


@dataclass
class Pair:
    query: torch.Tensor
    passage: torch.Tensor


def test_what_is_named_as_shared_passes():
    model = TwoTowers("product")
    with pfb.attach(model, "query.0", shared=("passage",)) as blocker:
        query, passage = torch.randn(10, 6), torch.randn(4, 6)
        model(query, passage=torch.cat([passage, passage]))
        assert len(blocker.select(query)) == 6


class TestListsBesideTheBatch:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x, other=None):
            return self.b(self.a(x))

    @pytest.mark.parametrize(
        "items",
        [[{"file": f"{i}.jpg"} for i in range(10)], [f"caption {i}" for i in range(10)], tuple(range(10))],
        ids=["metas", "captions", "ids"],
    )
    def test_one_item_per_sample_is_told(self, items):
        """It cannot be known whether the deep part pairs them with samples."""
        model = self.Net()
        blocker = pfb.attach(model, "a")
        with pytest.warns(UserWarning, match="takes 'other' beside its batch"):
            model(torch.randn(10, 6), items)
        blocker.detach()
        with pfb.attach(model, "a", shared=("other",)):
            model(torch.randn(10, 6), items)

    def test_a_list_that_had_another_length_before_is_not(self):
        model = self.Net()
        with pfb.attach(model, "a"):
            for n in (8, 5, 2):
                model(torch.randn(n, 6), ("cat", "dog", "owl", "fox", "elk"))

    def test_neither_are_numbers_and_small_shared_things(self):
        model = self.Net()
        with pfb.attach(model, "a"):
            for other in (None, 0.5, torch.tensor(0.5), (16, 16), "mean", {"p": 0.1}, torch.nn.Identity()):
                assert len(model(torch.randn(10, 6), other)) == 6

    def test_several_batches_in_one_list_are_refused(self):
        class Sum(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)

            def forward(self, parts):
                return self.b(self.a(parts[0])) + parts[1][:6]

        model = Sum()
        with (
            pfb.attach(model, "a"),
            pytest.raises(ValueError, match=r"takes 'parts\[1\]' beside 'parts\[0\]'"),
        ):
            model([torch.randn(10, 6), torch.randn(10, 6)])

    def test_one_list_of_one_tensor_per_sample_is_the_batch(self):
        class Stacks(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

            def forward(self, points):
                return self.b(self.a(torch.stack([p.mean(0) for p in points])))

        model = Stacks()
        for sizes in (range(2, 12), [4] * 10):
            with pfb.attach(model, "a"):
                assert len(model([torch.randn(n, 3) for n in sizes])) == 6


def test_what_a_forward_takes_from_its_batch_before_the_cut_is_not_noticed():
    """The limit of what acts inside a model: nothing tells what else is made of its one input."""

    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 1)

        def forward(self, x):
            weights = x[:, 0]
            scores = self.b(self.a(x))[:, 0]
            return torch.stack([w * s for w, s in zip(weights, scores, strict=False)]).sum()

    model = Weighted()
    x = torch.randn(10, 6)
    with pfb.attach(model, "a", rule=lambda features: -features[:, 0]) as blocker:
        inside = model(x)
        kept = blocker.selection.indices
    assert not torch.isclose(inside, model(x[kept]))
    pruner = pfb.BatchPruner(0.4, features=pfb.Shallow(model, "a"), rule=lambda features: -features[:, 0])
    assert torch.equal(pruner(x), x[kept])
