"""The first epoch finds copies, and later ones do not load them."""

import warnings
from unittest import mock

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pfb
from pfb.copies import batch_sampler
from pfb.copies.batch_sampler import CopyBatchSampler
from tests.system.test_distributed import gathered, on_two_ranks

COPIES, SINGLES, SIZE = 400, 200, 30


def data():
    """40 scenes of ten samples each, then single ones; and the index of each."""
    generator = torch.Generator().manual_seed(0)
    scenes = torch.randn(40, 8, generator=generator).repeat_interleave(10, 0)
    scenes = scenes + 0.01 * torch.randn(scenes.shape, generator=generator)
    x = torch.cat([scenes, torch.randn(SINGLES, 8, generator=generator)])
    return TensorDataset(x, torch.arange(len(x)))


def epoch(batches, number, workers=0, skip=0):
    """Indices that an epoch loads, and those that it trains on."""
    batches.set_epoch(number)
    loaded, trained = [], []
    for i, (x, index) in enumerate(DataLoader(data(), batch_sampler=batches, num_workers=workers)):
        if i >= skip:
            loaded.append(index)
            trained.append(batches(index, x, index)[1])
    return torch.cat(loaded), torch.cat(trained)


def share_of_singles(index):
    return float((index >= COPIES).float().mean())


def test_the_first_epoch_is_loaded_whole_and_later_ones_without_copies():
    batches = CopyBatchSampler(COPIES + SINGLES, SIZE)
    loaded, trained = epoch(batches, 0)
    assert sorted(loaded.tolist()) == list(range(600))
    assert len(trained) == 300
    for number in (1, 2):
        loaded, trained = epoch(batches, number)
        assert torch.equal(loaded, trained)
        assert len(loaded) == 300
        assert share_of_singles(loaded) > 0.6  # of all, a third
        assert len((loaded[loaded < COPIES] // 10).unique()) > 20  # and most scenes come by
    assert len(batches) == 20


def test_distinct_samples_are_drawn_evenly():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=generator)
    batches = CopyBatchSampler(600, SIZE)
    for indices in batches:
        batches(torch.tensor(indices), x[indices])
    times = torch.zeros(600)
    for number in range(1, 21):
        batches.set_epoch(number)
        times[torch.tensor([i for indices in batches for i in indices])] += 1
    assert times.mean() == 10
    assert times.std() < 2 * (20 * 0.25) ** 0.5
    assert times.min() > 0


def test_a_window_begins_and_ends_on_whole_batches_of_all_samples():
    batches = CopyBatchSampler(COPIES + SINGLES, SIZE, pfb.window(0.5, 0.1, 0.75), total_steps=80)
    batches.set_epoch(0)
    kept = [len(batches(torch.tensor(i), data().tensors[0][i])) for i in batches]
    assert kept == [30] * 8 + [15] * 12
    assert (batches.log_weights < -1).sum() > 200  # the first eight were judged, too
    batches.set_epoch(3)
    assert [len(i) for i in batches] == [30] * 20
    assert share_of_singles(torch.tensor([i for indices in batches for i in indices])) == pytest.approx(1 / 3)


def test_a_damaged_sample_comes_by_in_full():
    batches = CopyBatchSampler(600, SIZE)
    x = data().tensors[0].clone()
    x[3] = torch.nan
    for indices in batches:
        batches(torch.tensor(indices), x[indices])
    assert batches.log_weights[3] == 0
    assert batches.log_weights.isfinite().all()


@pytest.mark.parametrize("stop", [7, 20, 33])
def test_a_resumed_run_loads_and_keeps_what_it_would_have(stop):
    whole = CopyBatchSampler(COPIES + SINGLES, SIZE, seed=3)
    expected = [epoch(whole, number) for number in range(3)]
    first = CopyBatchSampler(COPIES + SINGLES, SIZE, seed=3)
    begun = [(number, i) for number in range(2) for i in range(20)][:stop]
    x = data().tensors[0]
    for number, i in begun:
        first.set_epoch(number)
        indices = list(first)[i]
        first(torch.tensor(indices), x[indices])
    state = {name: value if name == "version" else _copied(value) for name, value in first.state_dict().items()}
    again = CopyBatchSampler(COPIES + SINGLES, SIZE, seed=3)
    again.load_state_dict(state)
    for number in range(stop // 20, 3):
        skip = stop % 20 if number == stop // 20 else 0
        loaded, trained = epoch(again, number, skip=skip)
        assert torch.equal(loaded, expected[number][0][-len(loaded) :])
        assert torch.equal(trained, expected[number][1][-len(trained) :])


def _copied(value):
    if isinstance(value, dict):
        return {name: _copied(entry) for name, entry in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


def test_workers_load_and_the_loop_notes():
    with_workers, without = CopyBatchSampler(600, SIZE), CopyBatchSampler(600, SIZE)
    for number in range(2):
        a, b = epoch(with_workers, number, workers=2), epoch(without, number)
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_what_cannot_be_right_is_refused():
    batches = CopyBatchSampler(600, SIZE)
    x = torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"\[0, 600\).*got 600.*grows, make a new"):
        batches(torch.tensor([0, 1, 2, 600]), x)
    with pytest.raises(ValueError, match=r"got -1"):
        batches(torch.tensor([0, 1, 2, -1]), x)
    with pytest.raises(ValueError, match=r"one for each of 4 samples \(got 3\)"):
        batches(torch.tensor(next(iter(batches))[:3]), x)
    with pytest.raises(ValueError, match="places that this sampler drew"):
        batches(torch.tensor(list(batches)[3][:4]), x)
    with pytest.raises(ValueError, match="whole numbers"):
        batches(torch.rand(4), x)
    with pytest.raises(ValueError, match="this has 600"):
        batches.load_state_dict(CopyBatchSampler(601, SIZE).state_dict())
    with pytest.raises(ValueError, match="not a state"):
        batches.load_state_dict({"version": 1})
    for name, other in (("batch_size", CopyBatchSampler(600, 60)), ("seed", CopyBatchSampler(600, SIZE, seed=1))):
        with pytest.raises(ValueError, match=f"saved with {name}="):
            batches.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="at least a batch of 30"):
        CopyBatchSampler(20, SIZE)
    with pytest.raises(ValueError, match="above 0"):
        CopyBatchSampler(600, SIZE, 0.0)
    with pytest.raises(ValueError, match="total_steps=None"):
        CopyBatchSampler(600, SIZE, pfb.window(0.5, 0.1))
    later = CopyBatchSampler(600, SIZE)
    later.set_epoch(1)
    with pytest.raises(RuntimeError, match=r"0 of 20 batches were seen: set_epoch\(0\)"):
        next(iter(later))
    few = CopyBatchSampler(60, SIZE)
    for indices in [*few, *few][:2]:
        few(torch.tensor(indices), torch.randn(30, 8))
    with pytest.raises(RuntimeError, match=r"set_epoch\(1\)"):
        few(torch.arange(30), torch.randn(30, 8))


def test_a_window_that_ends_before_the_training_is_told():
    batches = CopyBatchSampler(60, SIZE, pfb.window(0.5, 0.1), total_steps=4)
    for number, told in ((0, False), (1, False), (2, True)):
        batches.set_epoch(number)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for indices in batches:
                if number == 0:
                    batches(torch.tensor(indices), torch.randn(30, 8))
        assert bool(found) == told
    assert "after total_steps=4: then batches are whole" in str(found[0].message)


def test_nothing_is_noted_while_its_pruner_is_paused():
    batches = CopyBatchSampler(600, SIZE)
    order, x = list(batches), data().tensors[0]
    batches(torch.tensor(order[0]), x[order[0]])
    before = batches.log_weights.clone()
    with batches.pruner.paused():
        assert len(batches(torch.tensor(order[1]), x[order[1]])) == SIZE
    assert torch.equal(batches.log_weights, before)


def test_a_state_stays_as_it_was_taken():
    batches = CopyBatchSampler(600, SIZE)
    taken = batches.state_dict()["log_weights"]
    epoch(batches, 0)
    assert not taken.any()
    assert batches.log_weights.any()


class Calling(torch.utils.data.Dataset):
    """One that calls the batches where nobody hears of it."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return 600

    def __getitem__(self, i):
        return self.batches(torch.tensor([i]), torch.randn(1, 8))


def test_a_worker_that_notes_is_refused():
    batches = CopyBatchSampler(600, SIZE)
    with pytest.raises(RuntimeError, match="not in a worker"):
        next(iter(DataLoader(Calling(batches), batch_sampler=batches, num_workers=1)))


def _on_ranks(rank):
    batches = CopyBatchSampler(600, 16)
    assert len(batches) == 18
    first = gathered(epoch(batches, 0)[0])
    assert len(torch.cat(first).unique()) == 18 * 32
    weights = gathered(batches.log_weights)
    assert torch.equal(weights[0], weights[1])
    assert (weights[0] < -1).sum() > 200
    of_each = gathered(epoch(batches, 1)[0].view(18, 8))
    alone = CopyBatchSampler.__new__(CopyBatchSampler)
    alone.__dict__ |= batches.__dict__ | {"batch_size": 32}
    with mock.patch.multiple(batch_sampler.sync, world_size=lambda: 1, rank=lambda: 0):
        assert torch.equal(torch.cat(of_each, 1), torch.tensor(list(alone)))
    assert share_of_singles(torch.cat(of_each)) > 0.6


def test_ranks_share_what_they_find_and_load_parts_of_one_draw():
    on_two_ranks(_on_ranks)
