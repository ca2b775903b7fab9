"""The adviser: right on data whose answer is known, with any loop's loader; nothing is changed."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import pfb
from pfb.adviser import advise as adviser
from pfb.adviser import findings
from pfb.adviser.noise_scale import NoiseScale
from pfb.adviser.scan import Survey
from tests import zoo

pytestmark = pytest.mark.usefixtures("_made_up_times")


def net(d=16):
    return nn.Sequential(nn.Linear(d, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 3))


def clips(n=20, frames=15, singles=200):
    x = torch.randn(n, 16).repeat_interleave(frames, 0) + 0.01 * torch.randn(n * frames, 16)
    return torch.cat([x, torch.randn(singles, 16)])


def loader_of(x, batch_size=50, y=None, **options):
    y = torch.randint(3, (len(x),)) if y is None else y
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=options.pop("shuffle", True), **options)


def look(x, model=None, plan=False, **options):
    return pfb.advise(net() if model is None else model, loader_of(x), plan=plan, **options)


@pytest.fixture(scope="module")
def found():
    """An advice to change for the tests of what is recommended when."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adviser, "REPEATS", 1)
        torch.manual_seed(0)
        return dataclasses.replace(look(torch.randn(300, 16)), step_seconds=2.0, kept_ratio=0.5, judge_ratio=0.0)


def test_clips_are_to_be_blocked_and_the_line_runs():
    advice = look(clips())
    assert advice.recommendation == "block"
    assert advice.near_copies == pytest.approx(0.6)
    assert advice.blockable == pytest.approx(20 * 14 / 500)
    assert (advice.prune, advice.memory) == (0.5, 166)  # a third of an epoch
    assert advice.most_saved == pytest.approx(0.5, abs=0.05)
    model = net()
    blocker = eval(advice.code, {"pfb": pfb, "model": model})
    loss = nn.functional.cross_entropy(model(clips()[:100]), blocker.select(torch.randint(3, (100,))))
    loss.backward()
    blocker.step()
    assert len(loss.shape) == 0
    text = str(advice)
    assert "500 of 500 samples looked at, in batches of 50, on cpu." in text
    assert "Recommended: block. 56% of the samples repeat others" in text
    assert text.endswith(advice.code)


def test_a_test_that_repeats_itself_is_to_be_trained_for_at_random():
    torch.manual_seed(0)
    x, new, scenes = clips(), torch.randn(60, 16), torch.randn(4, 16).repeat_interleave(15, 0)
    tests = {"new": new, "old": x[:60] + 0.01 * torch.randn(60, 16), "repetitive": scenes + 0.01 * torch.randn(60, 16)}
    found = {name: look(x, test=loader_of(test)) for name, test in tests.items()}
    assert {name: (round(a.tested.in_training, 1), round(a.tested.near_copies, 1)) for name, a in found.items()} == {
        "new": (0, 0),
        "old": (1, 1),
        "repetitive": (0, 1),
    }
    assert [a.test_repeats_itself for a in found.values()] == [False, True, True]
    assert [a.recommendation for a in found.values()] == ["block"] * 3
    assert "InverseDensity" in found["new"].code
    assert "does not repeat itself as much" in found["new"].reason
    assert all(
        "pfb.Uniform()" in found[name].code and "at random" in found[name].reason for name in ("old", "repetitive")
    )
    assert "flatters" in str(found["old"])
    assert "flatters" not in str(found["repetitive"])


def test_clean_data_have_nothing_to_spare():
    advice = look(torch.randn(600, 16))
    assert advice.recommendation == "nothing"
    assert advice.near_copies < 0.02
    assert "train fewer epochs" in str(advice)
    assert advice.code == ""


def test_a_minority_that_would_be_stopped_without_being_copies_is_told():
    clean, apart = torch.randn(900, 16), torch.randn(900, 16)
    apart[:180] += 8
    assert look(clean).mistaken == 0
    advice = look(apart)
    assert advice.near_copies == 0
    assert advice.mistaken == pytest.approx(0.2, abs=0.03)
    assert f"{advice.mistaken:.0%} of the samples are no near-copies, but" in str(advice)
    advice = look(torch.cat([clips(), 8 + torch.randn(100, 16)]))
    assert advice.recommendation == "block"
    assert "which are no copies, would be stopped like them" in advice.reason


def test_equal_and_few_copies_are_to_be_removed_once():
    single = torch.randn(300, 16)
    x = torch.cat([single, single[:60], single[:30] + 0.001])
    y = torch.randint(3, (300,))
    y = torch.cat([y, y[:60], y[:30]])
    advice = pfb.advise(net(), loader_of(x, y=y, shuffle=False), plan=False)
    assert advice.recommendation == "remove"
    assert advice.removable == pytest.approx(90 / 390)
    assert len(advice.duplicates) == 60
    assert len(advice.groups) == 60
    dataset = TensorDataset(x)
    rest = eval(advice.code, {"torch": torch, "dataset": dataset, "advice": advice})
    assert len(rest) == 300
    left = torch.stack([row for (row,) in rest])
    assert torch.cdist(single, left).amin(1).max() < 0.01


def test_equal_samples_of_different_classes_are_told():
    x = torch.randn(100, 16)
    y = torch.arange(200) % 3
    advice = pfb.advise(net(), loader_of(torch.cat([x, x]), y=y), plan=False)
    assert len(advice.conflicts) == 100
    assert advice.to_drop == ()  # one of each label stays
    assert "with different labels" in str(advice)


def test_broken_samples_are_named():
    x = torch.randn(100, 16)
    x[7], x[9, 3], x[20] = 1.0, float("nan"), 0.0
    advice = pfb.advise(net(), loader_of(x, shuffle=False), plan=False)
    assert (advice.constant, advice.not_finite) == ((7, 20), (9,))
    assert advice.recommendation == "mend-loader"
    assert "NaN or infinity is in 1 sample (indices 9)" in advice.reason


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
    expected = numbers()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(of_numpy)  # noqa: NPY002
    loader.generator.set_state(states[2])
    pfb.advise(model, loader)
    assert numbers() == expected
    assert all(torch.equal(a, b) for a, b in zip(state, (*model.parameters(), *model.buffers()), strict=True))
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True))
    assert model.training == training
    assert all(m.training == training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


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
    advice = pfb.advise(Reader(), batches, plan=False)
    assert len(advice.duplicates) == 45  # whatever their labels
    assert len(advice.groups) + len(advice.conflicts) == 45
    assert advice.noise.loss == pytest.approx(1.1, abs=0.3)
    assert advice.classes.keys() == {0, 1, 2}
    assert advice.total is None


def test_bare_tensors_without_labels():
    advice = pfb.advise(net(), list(torch.randn(4, 20, 16)), plan=False)
    assert advice.classes is None
    assert advice.noise is None
    assert "not measured: no loss is known: pass `loss=`" in str(advice)
    with_loss = pfb.advise(
        net(), list(torch.randn(4, 20, 16)), plan=False, loss=lambda output, _: output.square().mean()
    )
    assert with_loss.noise.seen == 80


def test_prepare_takes_any_batch_and_may_number_the_samples():
    x = clips(5, 10, 50)
    batches = [
        ("name", {"picture": part, "number": n})
        for part, n in zip(x.split(25), torch.arange(100).split(25), strict=True)
    ]

    def prepare(batch):
        return (batch[1]["picture"],), None, 1000 + batch[1]["number"]

    with pytest.raises(TypeError, match="pass `prepare=`"):
        pfb.advise(net(), [(1, 2, 3)])
    advice = pfb.advise(net(), batches, prepare=prepare, plan=False)
    assert {i for group in advice.groups for i in group} == set(range(1000, 1050))


def test_features_of_ones_own():
    advice = look(torch.randn(200, 16), features=lambda x: torch.zeros(len(x), 1))
    assert advice.near_copies == 1.0


def test_a_plan_is_made_and_its_cut_is_recommended():
    model = zoo.SmallNet()
    x = torch.randn(16, 3, 8, 8).repeat(12, 1, 1, 1) + 0.001 * torch.randn(192, 3, 8, 8)
    advice = pfb.advise(model, loader_of(x, 32))
    assert advice.plan.batch_size == 32
    assert advice.cut == "layer1"
    assert "features of the cut 'layer1'" in str(advice)
    assert 'cut="layer1"' in advice.code
    without = pfb.advise(nn.Flatten(), loader_of(x, 32))
    assert without.plan is None
    assert "plan" in str(without)


def test_only_so_many_samples_are_looked_at_and_what_that_hides_is_said():
    advice = look(torch.randn(300, 16), samples=100)
    assert (advice.samples, advice.total) == (100, 300)
    assert "groups of fewer than about 9 are mostly not seen" in str(advice)


class Augmented(Dataset):
    def __getitem__(self, i):
        return torch.full((16,), float(i)) + torch.randn(16), i % 3

    def __len__(self):
        return 60


def test_augmentation_is_noticed():
    assert "Inputs are augmented, which hides some: look again without, and if that" in str(
        pfb.advise(net(), DataLoader(Augmented(), 20), plan=False)
    )
    assert not look(torch.randn(60, 16)).augmented


def test_classes_in_runs_are_told_and_spoil_the_noise_scale():
    y = torch.arange(3).repeat_interleave(40)
    advice = pfb.advise(net(), loader_of(torch.randn(120, 16), y=y, shuffle=False), plan=False)
    assert advice.in_runs
    assert advice.noise is None
    assert "shuffle" in str(advice)
    assert not pfb.advise(net(), loader_of(torch.randn(120, 16), y=y), plan=False).in_runs


def test_imbalance():
    y = torch.tensor([0] * 80 + [1] * 20 + [2] * 20)
    advice = pfb.advise(net(), loader_of(torch.randn(120, 16), y=y), plan=False)
    assert advice.classes == {0: 80, 1: 20, 2: 20}
    assert advice.imbalance == 0.25
    numbers = pfb.advise(net(), loader_of(torch.randn(120, 16), y=torch.randperm(120)), plan=False)
    assert numbers.classes is None


def changed(advice, **values):
    return dataclasses.replace(advice, **values)


def test_a_loader_that_is_waited_for_comes_first(found):
    waits = changed(found, wait_seconds=6.0, step_seconds=2.0, blockable=0.6)
    assert waits.recommendation == "mend-loader"
    assert waits.waiting == 0.75
    assert waits.most_saved == 0.25 * 0.4  # not more than is pruned
    assert "75% of the time is spent waiting" in waits.reason
    assert waits.reason.endswith("Copies need not be loaded: 60% could go.")


def test_a_batch_far_above_the_noise_scale_is_too_large(found):
    large = changed(found, batch_size=512, noise=NoiseScale(30.0, 4096, 0.5))
    assert large.recommendation == "smaller-batch"
    assert "17 times the gradient noise scale" in large.reason
    assert "try 32" in large.reason
    assert changed(large, noise=NoiseScale(30.0, 4096, 2.3, untrained=True)).recommendation == "nothing"
    assert changed(large, noise=NoiseScale(200.0, 4096, 0.5)).recommendation == "nothing"
    assert changed(large, kept_ratio=1.0).recommendation == "nothing"  # a smaller batch takes as long


def test_blocking_is_not_recommended_where_it_saves_no_time(found):
    idle = changed(found, blockable=0.6, kept_ratio=0.99)
    assert idle.recommendation == "nothing"
    assert "takes as long" in idle.reason.replace("\n", " ")
    assert changed(idle, removable=0.2).recommendation == "remove"


def test_blocking_is_not_recommended_where_judging_takes_what_is_spared(found):
    costly = changed(found, blockable=0.6, prune=0.5, judge_ratio=0.7)
    assert costly.recommendation == "nothing"
    assert "a pruned step of so small a model takes 1.20 of a whole one" in costly.reason
    assert changed(costly, removable=0.2).recommendation == "remove"
    cheap = changed(costly, judge_ratio=0.1)
    assert cheap.recommendation == "block"
    assert cheap.most_saved == pytest.approx(0.4, abs=0.02)
    at_random = changed(costly, near_copies=0.6, tested=findings.Tested(60, 0.0, 0.6))
    assert at_random.recommendation == "block"
    assert at_random.blocked_ratio == found.kept_ratio


def test_no_line_drops_samples_by_indices_of_a_shuffled_pass():
    """The data set's own indices are those of a loader that does not shuffle, or of `prepare`."""
    x = torch.randn(200, 16)
    x[150:] = x[:50]
    shuffled = pfb.advise(net(), loader_of(x), plan=False)
    assert shuffled.recommendation == "remove"
    assert shuffled.code == ""
    assert "shuffle=False" in shuffled.reason
    told = [pfb.advise(net(), loader_of(x, shuffle=False), plan=False)]
    batches = [(x[i], torch.zeros(50), i) for i in torch.randperm(200).split(50)]
    told += [pfb.advise(net(), batches, prepare=lambda batch: batch, plan=False)]
    for advice in told:
        kept = eval(advice.code, {"torch": torch, "dataset": TensorDataset(x), "advice": advice})
        assert len(torch.stack([row for (row,) in kept]).unique(dim=0)) == 150
    some = changed(told[0], blockable=0.3, removable=0.4)
    assert "it lists those of larger groups, too: 70% in all" in some.reason


def test_a_sampler_that_repeats_samples_is_refused():
    x = torch.randn(100, 16)
    sampler = WeightedRandomSampler(torch.rand(100), 100)
    with pytest.raises(ValueError, match="several times"):
        pfb.advise(net(), DataLoader(TensorDataset(x, x[:, 0]), 20, sampler=sampler), plan=False)
    twice = [(x[:50], x[:50, 0], torch.arange(50))] * 2
    with pytest.raises(ValueError, match="several times"):
        pfb.advise(net(), twice, prepare=lambda batch: batch, plan=False)


def test_of_a_subset_as_much_is_to_be_seen_as_is_trained_on():
    data = TensorDataset(torch.randn(400, 16), torch.randint(3, (400,)))
    subset = DataLoader(data, 50, sampler=SubsetRandomSampler(range(100)))
    assert pfb.advise(net(), subset, plan=False).total == 100
    nearly_all = DataLoader(data, 60, shuffle=True, drop_last=True)
    assert "not seen" not in str(pfb.advise(net(), nearly_all, plan=False))


def test_a_part_of_the_test_does_not_pass_for_all_of_it(monkeypatch):
    monkeypatch.setattr(adviser, "LEAST_TESTED", 20)
    x, new = clips(), torch.randn(200, 16)
    part = look(x, samples=500, test=loader_of(new.repeat_interleave(2, 0)))
    assert (part.tested.samples, part.tested.total) == (50, 400)
    assert not part.test_is_new
    assert "If what you test on repeats itself" in part.reason
    assert "of 50 of 400 samples" in str(part)
    assert look(x, samples=5000, test=loader_of(new)).test_is_new


def test_ones_own_features_are_in_the_line():
    x = torch.randn(500, 40)
    x[:300, :8] = torch.randn(20, 8).repeat_interleave(15, 0)

    features: Any = lambda x: x[:, :8]  # noqa: E731
    advice = look(x, net(40), features=features)
    assert advice.recommendation == "block"
    features.of = "input"
    model = net(40)
    blocker = eval(advice.code, {"pfb": pfb, "model": model, "features": features})
    assert "with the attribute `of" in advice.reason
    model(x[:50])
    assert blocker.stats["pruned_share"] == 0.5


@pytest.mark.parametrize("size", [1, 2])
def test_of_batches_of_one_or_two_none_can_be_stopped(size):
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    advice = pfb.advise(model, loader_of(clips(singles=20), size), plan=False)
    assert advice.near_copies > 0.5
    assert advice.kept_ratio == 1.0
    assert advice.recommendation == "nothing"


def test_waiting_beside_steps():
    seen = Survey(waits=[9.0, 0.5, 1.5], busy=[9.0, 1.0, 1.0])
    assert seen.wait_beside(0.3, overlaps=False) == 1.0
    assert seen.wait_beside(0.5, overlaps=True) == 1.5  # workers need 2 seconds a batch
    assert seen.wait_beside(3.0, overlaps=True) == 0.0
    assert Survey(waits=[9.0], busy=[1.0]).wait_beside(1.0, overlaps=False) is None


def test_progress_is_told():
    told = []
    look(torch.randn(100, 16), progress=lambda *what: told.append(what))
    assert ("reading samples", 50, 100) in told
    assert ("comparing samples", 100, 100) in told
    assert ("gradients", 4, 4) in told


class Picky(nn.Module):
    def forward(self, x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nmore")


@pytest.mark.parametrize(
    ("model", "loader", "options", "error", "says"),
    [
        (net(), [], {}, ValueError, "gave no samples"),
        (net(), None, {}, TypeError, "`loader` must be an iterable of batches"),
        (net(), [torch.randn(1, 16)], {}, ValueError, "the model does not run"),  # BatchNorm of one
        (nn.Linear(16, 3), [torch.randn(1, 16)], {}, ValueError, "a single sample"),
        (net(), [None], {}, TypeError, "pass `prepare=`"),
        (net(), ["text"], {}, TypeError, "pass `prepare=`"),
        (net(), [torch.randn(5, 7)], {}, ValueError, r"does not run on the loader's first batch \(\(5, 7\) float32\)"),
        (Picky(), [torch.randn(5, 7)], {}, ValueError, "cannot be multiplied. If it takes other arguments"),
        ("resnet", [torch.randn(5, 7)], {}, TypeError, "`model` must be a torch.nn.Module"),
        (net(), [torch.randn(5, 16)], {"samples": 1}, ValueError, "`samples` must be"),
        (net(), [torch.randn(5, 16)], {"cut": "nowhere"}, ValueError, "`cut` must name a layer"),
        (net(), [torch.randn(5, 16)], {"prepare": lambda x: x}, TypeError, "`prepare` must return"),
        (net(), [torch.randn(5, 16)], {"features": lambda x: x[0]}, ValueError, "`features` must return"),
        (nn.Flatten(), [torch.ones(5, 2, dtype=torch.bool)], {}, TypeError, "Pass `features=`"),
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
