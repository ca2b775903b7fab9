"""A loader whose batches are pruned: lengths, epochs, full batches and exact resume."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

import pfb
from pfb.pruning.filling import Pool, joined
from pfb.selection.select import Declared
from pfb.utils import distributed


def data(n=100):
    return TensorDataset(torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(n))


class TestAsTheLoaderItWraps:
    def test_length_attributes_and_epochs(self):
        sampler = DistributedSampler(data(), num_replicas=2, rank=0)
        plain = DataLoader(data(), batch_size=10, sampler=sampler)
        loader = pfb.prune_batches(plain, 0.5)
        assert (len(loader), loader.batch_size, loader.dataset) == (5, 10, plain.dataset)
        loader.set_epoch(3)
        assert sampler.epoch == 3
        assert [len(x) for x, y in loader] == [5] * 5
        with pytest.raises(AttributeError):
            loader.nothing_of_the_kind  # noqa: B018

    def test_a_loader_of_its_own_kind(self):
        class Shards:
            epoch = None

            def set_epoch(self, epoch):
                self.epoch = epoch

            def __iter__(self):
                yield from ({"x": torch.rand(8, 3, 4, 4), "id": list("abcdefgh")} for _ in range(3))

        shards = Shards()
        loader = pfb.prune_batches(shards, 0.5)
        loader.set_epoch(1)
        assert shards.epoch == 1
        assert [(len(b["x"]), len(b["id"])) for b in loader] == [(4, 4)] * 3
        with pytest.raises(TypeError):
            len(loader)

    def test_a_stream(self):
        class Stream(IterableDataset):
            def __iter__(self):
                yield from (torch.rand(6) for _ in range(20))

        assert [len(x) for x in pfb.prune_batches(DataLoader(Stream(), batch_size=8), 0.5)] == [4, 4, 2]

    def test_the_batch_is_moved_first(self):
        loader = pfb.prune_batches(DataLoader(data(20), batch_size=10), 0.5, device="meta", rule=pfb.Uniform())
        with pytest.raises(Exception):  # noqa: B017, PT011
            next(iter(loader))
        loader = pfb.prune_batches(DataLoader(data(20), batch_size=10), 0.5, device="cpu")
        assert len(next(iter(loader))[0]) == 5

    def test_what_has_a_method_to_is_moved_and_what_cannot_be_copied_is_refused(self):
        class Own:
            at = "cpu"

            def to(self, device):
                moved = Own()
                moved.at = str(device)
                return moved

        class Kept(dict):
            def __setitem__(self, key, value):
                raise RuntimeError("frozen")

        packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(2, 3)] * 4)
        (batch,) = pfb.prune_batches([{"own": Own(), "in": (packed, torch.zeros(4))}], 0.0, device="meta")
        assert (batch["own"].at, batch["in"][0].data.device.type, batch["in"][1].device.type) == ("meta",) * 3
        with pytest.raises(TypeError, match=r"`batch\['x'\]` is a Kept that cannot be copied.*Pass a plain dict"):
            next(iter(pfb.prune_batches([{"x": Kept(a=torch.zeros(4))}], 0.0, device="meta")))

    def test_a_pruner_of_ones_own(self):
        pruner = pfb.BatchPruner(0.25)
        loader = pfb.prune_batches(DataLoader(data(), batch_size=8), pruner=pruner)
        assert loader.pruner is pruner
        assert len(next(iter(loader))[0]) == 6
        with pytest.raises(TypeError, match="`pruner` has its own settings"):
            pfb.prune_batches(DataLoader(data()), pruner=pruner, seed=3)

    def test_what_cannot_be_wrapped(self):
        loader = DataLoader(data())
        with pytest.raises(TypeError, match="pruned already"):
            pfb.prune_batches(pfb.prune_batches(loader))
        with pytest.raises(TypeError, match="is an iterator"):
            pfb.prune_batches(iter(loader))
        with pytest.raises(TypeError, match="iterable of batches"):
            pfb.prune_batches(3)

    def test_the_memory_is_told_how_long_an_epoch_is(self):
        loader = pfb.prune_batches(DataLoader(data(), batch_size=10))
        assert loader.pruner.density.epoch == 100
        assert pfb.prune_batches(DataLoader(data(), batch_size=30, drop_last=True)).pruner.density.epoch == 90

    @pytest.mark.parametrize("split", [False, True])
    def test_accelerates_shards_and_splits(self, split, monkeypatch):
        data_loader = pytest.importorskip("accelerate.data_loader")
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        plain = DataLoader(data(), batch_size=10, shuffle=True)
        loader = data_loader.prepare_data_loader(plain, num_processes=2, split_batches=split, put_on_device=False)
        pruned = pfb.prune_batches(loader, fill=True)
        assert pruned.pruner.density.epoch == 100
        assert len(list(loader.batch_sampler)) == len(loader) == (10 if split else 5)
        assert len(pruned) == (6 if split else 2), "3 of each 5 are kept, or 5 of each 10"


class TestFullBatches:
    @given(st.integers(5, 60), st.integers(4, 12), st.sampled_from([0.0, 0.3, 0.5, 0.7]), st.booleans())
    def test_the_length_is_exact_and_nothing_is_lost_or_doubled(self, n, size, prune, drop_last):
        kept_rows, pruner = [], pfb.BatchPruner(prune, rule=pfb.Uniform())
        plain = DataLoader(data(n), batch_size=size, shuffle=True, drop_last=drop_last)
        real = pruner.__class__.__call__

        class Watched(pfb.BatchPruner):
            def __call__(self, batch):
                kept = real(self, batch)
                kept_rows.extend(kept[1].tolist())
                return kept

        loader = pfb.prune_batches(plain, fill=True, pruner=Watched(prune, rule=pfb.Uniform()))
        given_rows = []
        for _ in range(3):
            expected = len(loader)
            batches = list(loader)
            assert len(batches) == expected
            assert all(len(x) == len(y) == min(size, n) for x, y in batches)
            assert all(torch.equal(x, plain.dataset.tensors[0][y]) for x, y in batches)
            given_rows += [int(row) for _, y in batches for row in y]
        held = Counter(kept_rows)
        held.subtract(Counter(given_rows))
        assert min(held.values(), default=0) >= 0, "none is given twice"
        assert sum(held.values()) < max(size, 1), "and what is left waits for the next epoch"

    def test_a_window_changes_the_length(self):
        plain = DataLoader(data(80), batch_size=10)
        loader = pfb.prune_batches(plain, pfb.window(0.5, start=0.5), fill=True, total_steps=16)
        assert len(loader) == 8
        assert len(list(loader)) == 8
        assert len(loader) == 4
        assert len(list(loader)) == 4

    def test_texts_lists_and_arrays(self):
        two = {"x": torch.zeros(2, 3), "id": ["a", "b"], "row": np.arange(2), "size": (8, 8), "data": [torch.ones(2)]}
        one = {"x": torch.ones(1, 3), "id": ["c"], "row": np.arange(1), "size": (8, 8), "data": [torch.ones(1)]}
        both = joined(two, 2, one, 1, Declared())
        assert both["id"] == ["a", "b", "c"]
        assert both["row"].tolist() == [0, 1, 0]
        assert both["size"] == (8, 8)
        assert [len(x) for x in both["data"]] == [3]

    def test_what_cannot_be_joined_is_refused_with_its_place(self):
        with pytest.raises(ValueError, match=r"`batch\['x'\]` cannot be gathered.*pad to a fixed length"):
            joined({"x": torch.zeros(2, 3)}, 2, {"x": torch.zeros(1, 4)}, 1, Declared())
        with pytest.raises(ValueError, match=r"`batch\['lam'\]` belongs to a batch as a whole and differs"):
            joined({"lam": 0.3}, 2, {"lam": 0.4}, 1, Declared())

    def test_the_length_of_what_has_none_is_refused(self):
        with pytest.raises(TypeError, match="knows its data set and batch size"):
            len(pfb.prune_batches([torch.rand(4, 3)], fill=True))


class TestResume:
    @pytest.mark.parametrize("fill", [False, True])
    @pytest.mark.parametrize("stop", [0, 3, 7])
    def test_in_the_middle_of_an_epoch(self, fill, stop):
        def make():
            order = torch.Generator().manual_seed(3)
            plain = DataLoader(data(), batch_size=10, shuffle=True, generator=order)
            return pfb.prune_batches(plain, 0.5, fill=fill)

        straight, state, seen = make(), None, []
        for i, (_, y) in enumerate(straight):
            if i == min(stop, 4 if fill else 9):
                seen.clear()
                state = copy.deepcopy(straight.state_dict())
            else:
                seen.append(y.tolist())
        again = make()
        again.load_state_dict(state)
        assert [y.tolist() for _, y in again] == seen
        assert again.pruner.steps == straight.pruner.steps

    @pytest.mark.parametrize("fill", [False, True])
    def test_after_an_evaluation_inside_the_epoch(self, fill):
        """Which is another iteration, whose batches do not count for the training's."""

        def make():
            return pfb.prune_batches(DataLoader(data(), batch_size=10), 0.5, fill=fill)

        alone, loader = make(), make()
        expected = [y.tolist() for _, y in alone]
        given = iter(loader)
        got = [next(given)[1].tolist()]
        batches = loader.state_dict()["batches"]
        with loader.pruner.paused():
            assert sorted(torch.cat([y for _, y in loader]).tolist()) == sorted(data().tensors[1].tolist())
        assert loader.state_dict()["batches"] == batches
        got += [y.tolist() for _, y in given]
        assert got == expected
        assert loader.state_dict()["batches"] == 0

    def test_other_batches_in_the_middle_of_an_epoch_are_refused(self):
        loaders = [pfb.prune_batches(DataLoader(data(), batch_size=size), 0.5) for size in (10, 20)]
        loaders[1].load_state_dict(loaders[0].state_dict())  # at its beginning
        next(iter(loaders[0]))
        with pytest.raises(ValueError, match=r"after 1 batches, of 10 samples over all ranks, and they have 20 now"):
            loaders[1].load_state_dict(loaders[0].state_dict())

    def test_a_foreign_state(self):
        loader = pfb.prune_batches(DataLoader(data()))
        for state in (None, {}, {"pruner": 1}):
            with pytest.raises(ValueError, match="not a state of pfb.prune_batches"):
                loader.load_state_dict(state)
        with pytest.raises(ValueError, match="saved with fill=False"):
            pfb.prune_batches(DataLoader(data()), fill=True).load_state_dict(loader.state_dict())

    def test_a_damaged_pool(self):
        rest = (torch.zeros(2, 3), ["a", "b"])
        wrong_rests = [{"rest": None}, {"rest": torch.zeros(1)}]
        for changed in ({"held": -1}, {"held": 3}, {"size": "3"}, {"size": None}, *wrong_rests):
            with pytest.raises(ValueError, match="held|rest"):
                Pool(Declared()).load_state_dict({"size": 3, "held": 2, "rest": rest} | changed)
        with pytest.raises(ValueError, match="held"):
            Pool(Declared()).load_state_dict({"size": 3})

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda s: s["pruner"].update(step=-1),
            lambda s: s["held"].update(held=-1),
            lambda s: s["held"].update(rest=(torch.zeros(1, 3), torch.zeros(1))),
            lambda s: s.update(loader={"nothing": 0}),
        ],
    )
    def test_a_state_that_is_refused_changes_nothing(self, spoil):
        class Resumable(DataLoader):
            at = 0

            def state_dict(self):
                return {"at": self.at}

            def load_state_dict(self, state):
                self.at = state["at"]

        made = [pfb.prune_batches(Resumable(data(), batch_size=10), 0.3, fill=True) for _ in range(3)]
        first, ours, untouched = made
        next(iter(first))
        for loader in (ours, untouched):
            list(loader)
        state = copy.deepcopy(first.state_dict())
        spoil(state)
        with pytest.raises((ValueError, KeyError)):
            ours.load_state_dict(state)
        assert ours.pruner.steps == 10
        assert [y.tolist() for _, y in ours] == [y.tolist() for _, y in untouched]


class TestFullBatchesOfLists:
    """Lists of tensors whose sizes happen to be the number of samples."""

    def test_ragged_boxes_stay_one_item_per_sample(self):
        rows = [(torch.randn(3, 8, 8), torch.full((i % 9 + 1, 4), float(i)), i) for i in range(160)]

        def collate(batch):
            images, boxes, index = zip(*batch, strict=True)
            return torch.stack(images), list(boxes), torch.tensor(index)

        loader = pfb.prune_batches(DataLoader(rows, batch_size=16, collate_fn=collate), 0.5, fill=True)
        for images, boxes, index in loader:
            assert len(images) == len(boxes) == len(index) == 16
            assert all(torch.equal(b, rows[i][1]) for b, i in zip(boxes, index.tolist(), strict=True))

    def test_lists_of_three_images_are_no_three_channels(self):
        rows = [(torch.randn(3, 8, 8), {"id": i}) for i in range(48)]
        plain = DataLoader(rows, batch_size=6, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
        for images, targets in pfb.prune_batches(plain, 0.5, fill=True):
            assert [x.shape for x in images] == [(3, 8, 8)] * 6
            assert all(torch.equal(x, rows[t["id"]][0]) for x, t in zip(images, targets, strict=True))

    def test_names_of_classes_are_not_doubled(self):
        batches = [{"x": torch.randn(20, 8), "classes": [f"c{i}" for i in range(10)]} for _ in range(6)]
        assert {len(b["classes"]) for b in pfb.prune_batches(batches, 0.5, fill=True)} == {10}

    def test_stacked_views_are_refused(self):
        with pytest.raises(ValueError, match=r"views=pfb.Views\(2, interleaved=True\)"):
            pfb.prune_batches(DataLoader(data(), batch_size=10), 0.5, views=2, fill=True)

    def test_a_pause_in_between(self):
        loader = pfb.prune_batches(DataLoader(data(), batch_size=10), 0.5, fill=True)
        list(loader)
        with loader.pruner.paused():
            assert {len(x) for x, _ in loader} == {10}


def test_a_second_share_beside_a_pruner_is_refused():
    with pytest.raises(TypeError, match="`pruner` has its own settings"):
        pfb.prune_batches(DataLoader(data()), 0.5, pruner=pfb.BatchPruner(0.2))
