"""The adviser: right on data whose answer is known, with any loop's loader; nothing is changed."""

import dataclasses
import random
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import pfb
from pfb.adviser import advise as adviser
from pfb.adviser import step_time
from pfb.adviser.overlap import Overlap
from pfb.utils.timing import Spread
from tests import zoo

pytestmark = pytest.mark.usefixtures("_made_up_times")


def net(d=16):
    return nn.Sequential(nn.Linear(d, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 3))


def clips(n=20, frames=15, singles=200):
    x = torch.randn(n, 16).repeat_interleave(frames, 0) + 0.01 * torch.randn(n * frames, 16)
    return torch.cat([x, torch.randn(singles, 16)])


def fading(n=20, frames=15, singles=200):
    """Clips whose frames differ by little to much, so that copies shade into the rest."""
    x = torch.randn(n, 16).repeat_interleave(frames, 0)
    x = x + 0.1 * torch.rand(n * frames, 1) * torch.randn(n * frames, 16)
    return torch.cat([x, torch.randn(singles, 16)])


class Stream:
    """Batches that come, of whom nobody knows how many there are."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        for batch in self.x[torch.randperm(len(self.x))].split(50):
            yield batch, torch.randint(3, (len(batch),))


def loader_of(x, batch_size=50, y=None, **options):
    y = torch.randint(3, (len(x),)) if y is None else y
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=options.pop("shuffle", True), **options)


def look(x, **options):
    return pfb.advise(net(x.size(1)), loader_of(x), **options)


def changed(advice, **values):
    """The same advice with other values of its findings, by ``finding__value``."""
    parts, own = {}, {}
    for name, value in values.items():
        place, _, inner = name.partition("__")
        if inner:
            parts.setdefault(place, {})[inner] = value
        else:
            own[name] = value
    found = {place: dataclasses.replace(getattr(advice, place), **inner) for place, inner in parts.items()}
    return dataclasses.replace(advice, **found, **own)


@pytest.fixture(scope="module")
def found():
    """An advice to change for the tests of what is recommended when."""
    torch.manual_seed(0)
    advice = pfb.advise(None, loader_of(torch.randn(300, 16)))
    steps = step_time.StepTime("cpu", 2.0, Spread(0.5, 0.48, 0.52), Spread(0.0, 0.0, 0.0), 0.0)
    return dataclasses.replace(advice, steps=steps)


# What is recommended


def test_copies_that_shade_into_the_rest_are_to_be_drawn_less_often_and_the_line_runs():
    torch.manual_seed(0)
    advice = look(fading())
    assert advice.copies.unclear > 0.1
    assert advice.recommendation == "draw"
    assert advice.prune == pytest.approx(advice.copies.seen, abs=0.05)
    assert "and shade into the rest" in advice.reason
    assert [way for way, _ in advice.others] == ["prune in the batch"]
    names = {"pfb": pfb, "loader": loader_of(fading())}
    exec(advice.code, names)
    assert (names["sampler"].samples, names["sampler"].batch_size) == (500, 50)
    exec(advice.others[0][1], names)
    assert len(next(iter(names["loader"]))[0]) < 50


def test_of_a_stream_clear_copies_are_to_be_pruned_and_the_line_runs():
    advice = pfb.advise(net(), Stream(clips()))
    assert advice.recommendation == "prune"
    assert advice.near_copies == pytest.approx(0.6)
    assert advice.spare == advice.copies.seen == pytest.approx(20 * 14 / 500)
    assert advice.prune == 0.5
    assert advice.saved == pytest.approx(0.5, abs=0.05)
    assert advice.others == ()
    names = {"pfb": pfb, "loader": Stream(clips())}
    exec(advice.code, names)
    for x, y in names["loader"]:
        assert (len(x), len(y)) == (25, 25)
    text = str(advice)
    assert "500 samples looked at, in batches of 50, on cpu." in text
    assert "Recommended: prune in the batch. 56% of the samples repeat others" in text


def test_clear_copies_of_data_that_stand_still_are_to_be_removed():
    x = clips()
    advice = pfb.advise(net(), loader_of(x, shuffle=False, y=torch.zeros(len(x), dtype=torch.long)))
    assert advice.copies.unclear < 0.02
    assert advice.recommendation == "remove"
    assert "copies are told apart from the rest clearly" in advice.reason
    ways = [("remove", advice.code), *advice.others]
    assert [way for way, _ in ways] == ["remove", "prune in the batch", "draw copies less often"]
    names = {"pfb": pfb, "torch": torch, "advice": advice, "dataset": TensorDataset(x), "loader": loader_of(x)}
    for _, code in ways:
        exec(code, names)
        assert code in str(advice)
    assert len(names["dataset"]) == 220
    assert names["sampler"].num_samples == 220
    drawn = torch.bincount(torch.tensor([i for _ in range(40) for i in names["sampler"]]), minlength=500)
    assert drawn[:300].sum() / drawn.sum() == pytest.approx(20 / 220, abs=0.02)


def test_a_test_that_repeats_itself_is_to_be_trained_for_at_random():
    torch.manual_seed(0)
    x, new, scenes = fading(), torch.randn(60, 16), torch.randn(4, 16).repeat_interleave(15, 0)
    tests = {"new": new, "old": x[:60] + 0.01 * torch.randn(60, 16), "repetitive": scenes + 0.01 * torch.randn(60, 16)}
    found = {name: look(x, test=loader_of(test)) for name, test in tests.items()}
    assert {name: (round(a.tested.in_training, 1), round(a.tested.near_copies, 1)) for name, a in found.items()} == {
        "new": (0, 0),
        "old": (1, 1),
        "repetitive": (0, 1),
    }
    assert [a.recommendation for a in found.values()] == ["draw", "draw", "random"]
    assert "does not repeat itself as much" in found["new"].reason
    assert "new and rare things gain" in found["old"].reason
    assert "rule=pfb.Uniform()" in found["repetitive"].code
    x = clips()  # of clear copies it does not matter where they come from
    assert look(x, test=loader_of(x[:60] + 0.01 * torch.randn(60, 16))).recommendation == "random"
    assert "flatters" in str(found["old"])
    assert "flatters" not in str(found["repetitive"])


def test_clean_data_have_nothing_to_spare():
    advice = look(torch.randn(600, 16))
    assert advice.recommendation == "nothing"
    assert advice.near_copies < 0.02
    assert "train fewer epochs" in str(advice)
    assert advice.code == ""
    assert advice.others == ()


def test_equal_samples_are_to_be_removed_once():
    single = torch.randn(300, 16)
    x, y = torch.cat([single, single[:60], single[:30] + 0.001]), torch.randint(3, (300,))
    advice = pfb.advise(net(), loader_of(x, y=torch.cat([y, y[:60], y[:30]]), shuffle=False))
    assert advice.recommendation == "remove"
    assert advice.spare == pytest.approx(90 / 390)
    assert len(advice.groups) == 60
    assert "15.4% because they are equal to others to the last bit" in str(advice)
    names = {"torch": torch, "dataset": TensorDataset(x), "advice": advice}
    exec(advice.code, names)
    left = torch.stack([row for (row,) in names["dataset"]])
    assert len(left) == 300
    assert torch.cdist(single, left).amin(1).max() < 0.01


def test_pairs_are_to_be_removed_if_they_are_clear_and_to_be_left_if_not():
    single = torch.randn(200, 16)
    x = torch.cat([single, single[:60] + 0.001])
    advice = pfb.advise(None, loader_of(x, y=torch.zeros(260), shuffle=False))
    assert advice.recommendation == "remove"
    assert sum(advice.weights) == pytest.approx(200)
    assert advice.weights[0] == 0.5
    shading = changed(advice, copies__unclear=0.2)
    assert shading.recommendation == "random"
    assert "in small groups" in shading.reason
    equal = changed(shading, copies__equal=advice.spare)
    assert equal.recommendation == "remove"
    assert "clearly" not in equal.reason


def test_a_list_from_a_part_of_the_data_is_said_to_be_one(found):
    part = changed(found, copies__spare=0.3, copies__seen=0.3, known_indices=True)
    assert part.recommendation == "remove"
    assert "part of the data" not in part.reason
    assert "look at all, samples=900" in changed(part, total=900).reason


def test_of_equal_samples_with_other_labels_one_of_each_stays():
    x, y = torch.randn(100, 16), torch.arange(200) % 3
    advice = pfb.advise(None, loader_of(torch.cat([x, x]), y=y, shuffle=False))
    assert advice.copies.conflicts == 100
    assert advice.keep == list(range(200))
    assert "labels differ in 100 of these groups" in str(advice)


def test_broken_samples_are_named():
    x = torch.randn(100, 16)
    x[9, 3] = float("nan")
    advice = pfb.advise(None, loader_of(x, shuffle=False))
    assert advice.not_finite == (9,)
    assert advice.recommendation == "fix-data"
    assert "NaN or infinity is in 1 sample (indices 9)" in advice.reason


def test_loading_is_not_spared_by_pruning_a_stream_in_the_batch(found):
    stream = changed(found, copies__spare=0.6, copies__seen=0.6, total=None)
    assert stream.recommendation == "prune"
    waits = changed(stream, steps__loading=0.75)
    assert waits.recommendation == "nothing"
    assert waits.saved == pytest.approx(0.25 * 0.5)
    assert "Train fewer epochs" in waits.reason
    drawn = changed(waits, total=300, copies__unclear=0.3)
    assert drawn.recommendation == "draw"
    assert drawn.code.startswith("sampler = pfb.CopyBatchSampler(300, batch_size=50, prune=0.5)")
    for cannot in ({"is_part": True}, {"own_features": True}):  # the sampler takes neither
        pruned = changed(stream, total=300, copies__unclear=0.3, **cannot)
        assert pruned.recommendation == "prune"
        assert "CopyBatchSampler" not in str(pruned)


def test_what_saves_no_time_is_not_recommended(found):
    stream = changed(found, copies__spare=0.6, copies__seen=0.6, total=None)
    drawn = changed(stream, total=300, copies__unclear=0.3)
    assert (stream.recommendation, drawn.recommendation) == ("prune", "draw")
    as_long = {"steps__kept": Spread(0.99, 0.98, 1.0)}
    assert [changed(one, **as_long).recommendation for one in (stream, drawn)] == ["nothing", "nothing"]
    assert "takes as long here" in changed(drawn, **as_long).reason
    assert changed(drawn, **as_long, steps__loading=0.6).recommendation == "draw"
    costly = {"steps__judged": Spread(0.7, 0.7, 0.7)}  # to choose, which the sampler does in the first epoch only
    assert [changed(one, **costly).recommendation for one in (stream, drawn)] == ["nothing", "draw"]
    assert changed(drawn, copies__near=0.6, tested=Overlap(60, 0.0, 0.6)).recommendation == "random"


def test_where_pairs_of_steps_disagree_time_decides_nothing(found):
    stream = changed(found, copies__spare=0.6, copies__seen=0.6, total=None)
    noisy = changed(stream, steps__kept=Spread(1.1, 0.4, 3.0))
    assert noisy.steps.is_shorter is None
    assert noisy.recommendation == "prune"
    assert "cannot be told: between 0.40 and 3.00" in str(noisy)
    assert "cannot be told" in noisy.reason
    assert str(changed(noisy, steps__loading=None))


def test_more_than_the_default_is_remembered_only_where_it_sees_more():
    advice = look(clips())
    assert "NeighbourMemory" not in advice.codes["prune"]
    few = changed(advice, copies__memory=16384)
    assert "density=pfb.NeighbourMemory(16384)" in few.codes["prune"]


# Whom the default leaves out


def test_the_default_is_tried_and_its_shares_are_told():
    advice = pfb.advise(None, loader_of(clips(10, 30, 300), y=(torch.arange(600) >= 300).long(), shuffle=True))
    advice, shares = dataclasses.replace(advice, total=None), advice.shares
    assert shares.mean == pytest.approx(1 - advice.prune, abs=0.02)
    assert shares.by_group["of more"] < 0.35
    assert shares.by_group["single"] > 0.7
    assert shares.starved == {0: 1.0}  # the class of the clips, which are copies
    assert "class 0 (100% near-copies)" in str(advice)
    assert "But some classes are kept far less than others" in advice.reason


def test_a_class_is_not_warned_of_by_chance():
    advice = pfb.advise(None, loader_of(torch.randn(400, 16), y=torch.arange(400) % 40))
    assert advice.shares.starved == {}
    assert "warning" not in str(advice)


def test_the_trial_is_the_same_each_time():
    x, y = clips(), torch.arange(500) % 3
    one, two = (pfb.advise(None, loader_of(x, y=y, shuffle=False)).shares for _ in range(2))
    assert one == two


def test_fewer_than_64_samples_tell_no_shares():
    assert pfb.advise(None, loader_of(torch.randn(40, 16))).shares is None


def test_what_is_mistaken_for_copies_is_told():
    """By features of the user's, of which no changed view is known."""
    apart = torch.randn(900, 16)
    apart[:180] += 8
    advice = pfb.advise(None, loader_of(apart, shuffle=False), features=lambda x: x)
    assert advice.near_copies < 0.02
    assert advice.shares.mistaken == pytest.approx(0.2, abs=0.03)
    assert "more alike than the rest" in str(advice)
    assert set(advice.shares.least_kept) <= set(range(180))


# What goes in


@pytest.mark.parametrize("training", [True, False])
def test_everything_is_as_before_bit_for_bit(training):
    model = net().train(training)
    model(torch.randn(8, 16)).sum().backward()
    model[0].weight.requires_grad_(False)
    loader = loader_of(torch.randn(120, 16), generator=torch.Generator().manual_seed(3))
    state = [x.clone() for x in (*model.parameters(), *model.buffers())]
    grads = [p.grad.clone() for p in model.parameters()]
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 (what most data sets draw from)

    def numbers():
        drawn = np.random.rand()  # noqa: NPY002
        return torch.rand(3).tolist(), random.random(), drawn, [y.tolist() for _, y in loader]

    of_numpy = np.random.get_state()  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate(), loader.generator.get_state()
    expected, threads = numbers(), torch.get_num_threads()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(of_numpy)  # noqa: NPY002
    loader.generator.set_state(states[2])
    pfb.advise(model, loader)
    assert numbers() == expected
    assert torch.get_num_threads() == threads
    assert all(torch.equal(a, b) for a, b in zip(state, (*model.parameters(), *model.buffers()), strict=True))
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True))
    assert all(m.training == training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_model_and_loader_come_in_either_order_and_the_model_may_be_left_out():
    loader, model = loader_of(torch.randn(100, 16), shuffle=False), net()
    assert pfb.advise(loader, model).steps is not None
    assert pfb.advise(loader).steps is None
    assert "not timed: pass the model" in str(pfb.advise(None, loader))


class Reader(nn.Module):
    """Takes what transformers' models take, and returns its loss."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.head((self.embed(input_ids) * attention_mask[..., None]).mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def test_batches_of_transformers_with_columns_the_model_does_not_take():
    tokens = torch.randint(50, (90, 12))
    tokens[45:] = tokens[:45]
    batches = [
        {"idx": [0], "attention_mask": torch.ones(30, 12), "input_ids": part, "labels": torch.randint(3, (30,))}
        for part in tokens.split(30)
    ]
    advice = pfb.advise(Reader(), batches)
    assert len(advice.groups) == 45
    assert advice.shares.by_class.keys() == {0, 1, 2}
    assert advice.total == 90
    assert advice.steps.ratio == 0.5
    assert "Of tokens" in str(advice)


def test_bare_tensors_and_images_of_several_sizes():
    assert pfb.advise(net(), list(torch.randn(4, 20, 16))).shares.by_class is None
    images = [torch.rand(3, 16, 16 + i % 3) for i in range(20)]
    advice = pfb.advise(None, [images, images])
    assert len(advice.groups) == 20


def test_prepare_takes_any_batch_and_may_number_the_samples():
    x = clips(5, 10, 50)
    batches = [
        ("name", {"picture": part, "number": n})
        for part, n in zip(x.split(25), torch.arange(100).split(25), strict=True)
    ]

    def prepare(batch):
        return (batch[1]["picture"],), None, 1000 + batch[1]["number"]

    advice = pfb.advise(net(), batches, prepare=prepare)
    assert {i for group in advice.groups for i in group} == set(range(1000, 1050))


def test_features_of_ones_own_are_in_the_line():
    x = torch.randn(500, 40)
    x[:300, :8] = torch.randn(20, 8).repeat_interleave(15, 0)
    features = lambda x: x[:, :8]  # noqa: E731
    advice = pfb.advise(net(40), loader_of(x), features=features)
    assert advice.near_copies == pytest.approx(0.6, abs=0.01)
    names = {"pfb": pfb, "loader": loader_of(x), "features": features}
    exec(advice.codes["prune"], names)
    assert len(next(iter(names["loader"]))[0]) == 25


def test_only_so_many_samples_are_looked_at_and_what_that_hides_is_said():
    advice = look(torch.randn(300, 16), samples=100)
    assert (advice.samples, advice.total) == (100, 300)
    part = look(torch.randn(300, 16), samples=70)  # a batch and a part of one
    assert part.samples == len(part.copies.distances) == 70
    assert "groups of fewer than about 9 are mostly not seen" in str(advice)


class Augmented(Dataset):
    def __getitem__(self, i):
        return torch.full((16,), float(i)) + torch.randn(16), i % 3

    def __len__(self):
        return 60


def test_augmentation_is_noticed():
    assert "Inputs are augmented, which hides some" in str(pfb.advise(None, DataLoader(Augmented(), 20)))
    assert "augmented" not in str(look(torch.randn(60, 16)))


def test_no_line_drops_samples_by_indices_of_a_shuffled_pass():
    """The data set's own indices are those of a loader that does not shuffle, or of `prepare`."""
    x, y = torch.randn(200, 16), torch.zeros(200, dtype=torch.long)
    x[150:] = x[:50]
    shuffled = pfb.advise(None, loader_of(x, y=y))
    assert (shuffled.recommendation, shuffled.code) == ("remove", "")
    assert "shuffle=False" in shuffled.reason
    batches = [(x[i], torch.zeros(50), i) for i in torch.randperm(200).split(50)]
    for advice in (pfb.advise(None, loader_of(x, y=y, shuffle=False)), pfb.advise(None, batches, prepare=lambda b: b)):
        names = {"torch": torch, "dataset": TensorDataset(x), "advice": advice}
        exec(advice.code, names)
        assert len(torch.stack([row for (row,) in names["dataset"]]).unique(dim=0)) == 150


@pytest.mark.parametrize("kind", ["batches", "batches without a sampler", "ours"])
def test_a_loader_of_batches_of_indices_is_not_taken_for_one_in_order(kind):
    """Torch gives it a sampler that says so and does nothing."""
    x = clips()
    data = TensorDataset(x, torch.zeros(len(x), dtype=torch.long))
    order = torch.utils.data.RandomSampler(data, generator=torch.Generator().manual_seed(1))
    batches = torch.utils.data.BatchSampler(order, 50, drop_last=False)
    loader = DataLoader(
        data,
        batch_sampler={
            "batches": batches,
            "batches without a sampler": list(batches),
            "ours": pfb.CopyBatchSampler(500, 50),
        }[kind],
    )
    before = order.generator.get_state()
    advice = pfb.advise(None, loader)
    assert torch.equal(order.generator.get_state(), before)
    assert (advice.recommendation, advice.known_indices, advice.code) == ("remove", False, "")


def test_no_line_draws_from_more_than_is_trained_on():
    x = torch.cat([fading(), torch.randn(100, 16)])
    for sampler in (SubsetRandomSampler(range(500)), list(range(500))):
        advice = pfb.advise(None, DataLoader(TensorDataset(x), 50, sampler=sampler))
        assert advice.is_part
        assert "draw" not in advice.codes
    assert "draw" in pfb.advise(None, DataLoader(TensorDataset(x), 50, shuffle=True)).codes


def test_indices_of_another_data_set_are_refused():
    x = torch.randn(100, 16)
    loader = DataLoader(TensorDataset(x, torch.arange(50, 150)), 20)
    with pytest.raises(ValueError, match="returned index 149, and the loader's data set has 100 samples"):
        pfb.advise(None, loader, prepare=lambda batch: (batch[0], None, batch[1]))
    stream = [(x[i], None, 50 + i) for i in torch.arange(100).split(20)]
    advice = pfb.advise(None, iter_again(stream), prepare=lambda batch: batch)
    assert (advice.total, advice.size, len(advice.keep)) == (None, 150, 150)


def iter_again(batches):
    class Again:
        def __iter__(self):
            return iter(batches)

    return Again()


LABELS = {
    "whole": lambda y: (y,),
    "bool": lambda y: (y.bool(),),
    "float": lambda y: (y.float(),),
    "column": lambda y: (y[:, None].float(),),
    "third": lambda y: (torch.randn(len(y), 4), y),
}


@pytest.mark.parametrize("form", LABELS)
def test_labels_of_any_usual_form_are_kept_apart(form):
    x, y = torch.randn(100, 16).repeat(2, 1), torch.arange(200) // 100
    advice = pfb.advise(None, DataLoader(TensorDataset(x, *LABELS[form](y)), 50))
    assert (advice.copies.conflicts, len(advice.keep)) == (100, 200)
    named = [{"image": x[i], "fine_label": y[i]} for i in torch.arange(200).split(50)]
    assert pfb.advise(None, named).copies.conflicts == 100


def test_it_says_where_no_labels_are_recognized():
    x = torch.randn(100, 16)
    hint = "No classes were recognized"
    assert hint in str(pfb.advise(None, DataLoader(TensorDataset(x, torch.rand(100, 3)), 50)))
    assert hint not in str(pfb.advise(None, DataLoader(TensorDataset(x), 50)))
    assert hint not in str(pfb.advise(None, [x[:50], x[50:]]))


def test_a_stream_of_pairs_is_not_told_to_be_removed():
    x = torch.randn(200, 16).repeat(2, 1)
    advice = pfb.advise(None, Stream(x))
    assert advice.recommendation == "nothing"
    assert "prune" not in advice.codes


def test_a_sampler_that_repeats_samples_is_refused():
    x = torch.randn(100, 16)
    sampler = WeightedRandomSampler(torch.rand(100), 100)
    with pytest.raises(ValueError, match="several times"):
        pfb.advise(None, DataLoader(TensorDataset(x, x[:, 0]), 20, sampler=sampler))
    batches = torch.utils.data.BatchSampler(sampler, 20, drop_last=False)
    with pytest.raises(ValueError, match="several times"):
        pfb.advise(None, DataLoader(TensorDataset(x, x[:, 0]), batch_sampler=batches))
    twice = [(x[:50], x[:50, 0], torch.arange(50))] * 2
    with pytest.raises(ValueError, match="several times"):
        pfb.advise(None, twice, prepare=lambda batch: batch)


def test_of_a_subset_as_much_is_to_be_seen_as_is_trained_on():
    data = TensorDataset(torch.randn(400, 16), torch.randint(3, (400,)))
    assert pfb.advise(None, DataLoader(data, 50, sampler=SubsetRandomSampler(range(100)))).total == 100
    assert "not seen" not in str(pfb.advise(None, DataLoader(data, 60, shuffle=True, drop_last=True)))


def test_a_part_of_the_test_does_not_pass_for_all_of_it(monkeypatch):
    monkeypatch.setattr(adviser, "LEAST_TESTED", 20)
    torch.manual_seed(0)
    x, new = fading(), torch.randn(200, 16)
    part = look(x, samples=500, test=loader_of(new.repeat_interleave(2, 0)))
    assert (part.tested.samples, part.tested.total) == (50, 400)
    assert "If what you test on repeats itself" in part.reason
    assert "of 50 of 400 samples" in str(part)


@pytest.mark.parametrize("size", [1, 2])
def test_of_batches_of_one_or_two_none_can_be_left_out(size):
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.manual_seed(0)
    advice = pfb.advise(model, loader_of(fading(singles=20), size))
    assert advice.near_copies > 0.5
    assert advice.steps.kept.median == 1.0
    assert advice.recommendation == "nothing"


def test_progress_is_told():
    told = []
    look(torch.randn(100, 16), progress=lambda *what: told.append(what))
    assert ("reading samples", 50, 100) in told
    assert ("comparing samples", 100, 100) in told
    assert ("trying the default", 500, 500) in told
    assert any(what == "timing steps" for what, _, _ in told)


class Picky(nn.Module):
    def forward(self, x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nmore")


@pytest.mark.parametrize(
    ("model", "loader", "options", "error", "says"),
    [
        (net(), [], {}, ValueError, "gave no samples"),
        (net(), None, {}, TypeError, "`loader` must be an iterable of batches"),
        (nn.Linear(16, 3), [torch.randn(1, 16)], {}, ValueError, "a single sample"),
        (net(), [None], {}, TypeError, "cannot be judged"),
        (net(), ["text"], {}, TypeError, "cannot be judged"),
        (net(), [torch.randn(5, 7)], {}, ValueError, r"does not run on the loader's first batch \(\(5, 7\) float32\)"),
        (Picky(), [torch.randn(5, 7)], {}, ValueError, "cannot be multiplied. If it takes other arguments"),
        ("resnet", [torch.randn(5, 7)], {}, TypeError, "`model` must be a torch.nn.Module"),
        (net(), [torch.randn(5, 16)], {"samples": 1}, ValueError, "`samples` must be"),
        (net(), [torch.randn(5, 16)], {"prepare": lambda x: x}, TypeError, "`prepare` must return"),
        (net(), [torch.randn(5, 16)], {"features": lambda x: x[0]}, ValueError, "`features` must return"),
        (nn.Flatten(), [torch.ones(5, 2, dtype=torch.bool)], {}, TypeError, "`features=`"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(model, loader, options, error, says):
    with pytest.raises(error, match=says) as told:
        pfb.advise(model, loader, **options)
    assert "\n" not in str(told.value)


def test_a_model_that_is_pruned_already_is_refused():
    model = net()
    with pfb.attach(model, "0", 0.5), pytest.raises(ValueError, match="detach"):
        pfb.advise(model, [torch.randn(5, 16)])


def test_steps_are_timed_by_the_processors_time_with_one_thread_on_a_cpu(monkeypatch):
    """What other programs do is not counted."""
    made_up, timed = step_time.interleaved_seconds, set()

    def noting(*args, clock, **options):
        timed.add((clock, torch.get_num_threads()))
        return made_up(*args, clock=clock, **options)

    monkeypatch.setattr(step_time, "interleaved_seconds", noting)
    look(torch.randn(100, 16))
    assert timed == {(time.process_time, 1)}


def test_a_model_of_its_own_cut_is_timed():
    model = zoo.SmallNet()
    x = torch.randn(16, 3, 8, 8).repeat(12, 1, 1, 1) + 0.001 * torch.randn(192, 3, 8, 8)
    assert pfb.advise(model, loader_of(x, 32)).steps.device == "cpu"
