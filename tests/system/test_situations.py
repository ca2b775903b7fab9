"""What people do, by public reports: with a BatchPruner training equals training on the kept samples;
with attach it is right, or refused or warned of with a way out that works.
"""

import copy
import dataclasses
import pickle
import threading
import typing
import warnings
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import pfb

N, K = 16, 8


def two_layers(inside=5, width=8, outside=3):
    return nn.Sequential(nn.Linear(inside, width), nn.Linear(width, outside))


def pruner(prune=0.5, **settings):
    return pfb.BatchPruner(prune, density=pfb.NeighbourMemory(64), **settings)


def first_column(features):
    """A rule without chance."""
    return features[:, 0]


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_trains_as_on_kept(model, loss_of, batch, only_kept, **settings):
    """Pruned, a model gets the gradients of its copy that was given the kept samples by hand.

    Args:
        loss_of: from model and batch to the loss.
        only_kept: from the batch and the kept rows to the batch of these, written without pfb.
    """
    plain, ours = copy.deepcopy(model), pruner(**settings)
    for _ in range(2):
        model.zero_grad(), plain.zero_grad()
        kept = ours(batch)
        rows = ours.selection.indices
        assert 2 <= len(rows) < ours.selection.batch_size
        loss_of(model, kept).backward()
        loss_of(plain, only_kept(batch, rows)).backward()
        ours_by_name, theirs = grads(model), grads(plain)
        assert ours_by_name.keys() == theirs.keys()
        assert all(torch.equal(g, theirs[name]) for name, g in ours_by_name.items())


class TestARowsPositionHasAMeaning:
    """K1: labelled, weak and strong views in one batch, told apart by position (FixMatch)."""

    def batch(self, ratio=1):
        labelled, unlabelled = 8, 8 * ratio
        weak = torch.randn(unlabelled, 5)
        return {
            "labelled": (torch.randn(labelled, 5), torch.randint(3, (labelled,))),
            "unlabelled": (weak, weak + 0.1 * torch.randn(unlabelled, 5)),
        }

    def loss(self, model, batch):
        (x, y), (weak, strong) = batch["labelled"], batch["unlabelled"]
        logits = model(torch.cat([x, weak, strong]))
        of_weak, of_strong = logits[len(x) :].chunk(2)
        return F.cross_entropy(logits[: len(x)], y) + F.cross_entropy(of_strong, of_weak.detach().argmax(1))

    def test_pruned_before_they_are_joined_each_part_keeps_its_place(self):
        batch = self.batch()
        assert_trains_as_on_kept(
            two_layers(),
            self.loss,
            batch,
            lambda b, k: {name: tuple(part[k] for part in parts) for name, parts in b.items()},
        )

    def test_parts_of_different_lengths_are_refused_and_two_pruners_take_them(self):
        batch = self.batch(ratio=7)
        with pytest.raises(ValueError, match=r"\['unlabelled'\]\[0\]. must have the batch of 8 samples"):
            pruner()(batch)
        one, other = pruner(), pruner(seed=1)
        kept = {"labelled": one(*batch["labelled"]), "unlabelled": other(*batch["unlabelled"])}
        assert [len(part) for parts in kept.values() for part in parts] == [4, 4, 28, 28]
        self.loss(two_layers(), kept).backward()

    def test_with_attach_parts_are_views_of_one_batch(self):
        """A decision over all rows at once would move them: the batch is told to be in three parts."""
        (x, y), (weak, strong) = self.batch()["labelled"], self.batch()["unlabelled"]
        model = two_layers()
        with pfb.attach(model, "0", 0.5, rule=first_column, views=3) as blocker:
            logits = model(torch.cat([x, weak, strong]))
            assert len(logits) == 12
            rows = blocker.selection.indices
            assert rows.view(3, 4).sub(torch.tensor([[0], [8], [16]])).unique(dim=0).shape == (1, 4)
            assert torch.equal(blocker.select(torch.cat([y, y, y]))[:4], y[rows[:4]])

    def test_with_attach_labels_of_a_part_are_refused(self):
        (x, y), (weak, strong) = self.batch()["labelled"], self.batch()["unlabelled"]
        model = two_layers()
        with pfb.attach(model, "0", 0.5) as blocker:
            model(torch.cat([x, weak, strong]))
            with pytest.raises(ValueError, match="must have the batch of 24 samples"):
                blocker.select(y)


class TestADecisionThatNobodyReadBeforeTheNext:
    """K2: source and target batch, two forwards, then both selects."""

    def test_with_a_pruner_nothing_is_left_to_select(self):
        ours, model = pruner(), two_layers()
        source, target = [(torch.randn(N, 5), torch.randint(3, (N,))) for _ in range(2)]
        (x, y), (u, v) = ours(*source), ours(*target)
        F.cross_entropy(model(x), y).add(F.cross_entropy(model(u), v)).backward()
        assert all((source[0] == row).all(1).any() for row in x)

    def test_with_attach_it_is_told(self):
        model = two_layers()
        y, v = torch.arange(N), torch.arange(N)
        with pfb.attach(model, "0", 0.5, rule=first_column) as blocker:
            model(torch.randn(N, 5)), model(torch.randn(N, 5))
            with pytest.warns(UserWarning, match="first one's selection was not read.*s = blocker.selection"):
                blocker.select(y), blocker.select(v)

    def test_the_way_out_works(self):
        model, x, u = two_layers(), torch.randn(N, 5), torch.randn(N, 5)
        with pfb.attach(model, "0", 0.5, rule=first_column) as blocker:
            a, of_a = model(x), blocker.selection
            b, of_b = model(u), blocker.selection
            torch.testing.assert_close(a, model[1](model[0](x)[of_a.indices]))
            torch.testing.assert_close(b, u[of_b.indices] @ (model[1].weight @ model[0].weight).T + model[1](model[0].bias))


class TestARowIsNotASample:
    """K3: flat targets that are as many as samples by chance."""

    def ultralytics(self, boxes=8):
        images = torch.rand(8, 3, 16, 16)
        index = torch.arange(8) if boxes == 8 else torch.arange(boxes) % 8
        index = index.sort().values
        return {"img": images, "batch_idx": index, "cls": torch.zeros(boxes, 1), "bboxes": torch.rand(boxes, 4)}

    @pytest.mark.parametrize("boxes", [8, 5, 13])
    def test_ultralytics_is_refused_whatever_the_number(self, boxes):
        with pytest.raises(ValueError, match="batch_idx|cls"):
            pruner()(self.ultralytics(boxes))

    def test_under_another_name_they_are_refused_once_their_number_is_another(self):
        """In a first batch with as many boxes as images by chance they pass as rows; no longer."""
        ours = pruner()
        for boxes in (8, 11):
            batch = self.ultralytics(boxes)
            batch["of_image"] = batch.pop("batch_idx")
            if boxes == 8:
                ours(batch)
        with pytest.raises(ValueError, match="of 8 samples.*flat list"):
            ours(batch)

    def test_one_tensor_per_sample_is_the_way_out(self):
        batch = self.ultralytics(13)
        ragged = [batch["bboxes"][batch["batch_idx"] == i] for i in range(8)]
        ours = pruner()
        kept = ours({"img": batch["img"], "boxes": ragged})
        assert all(kept["boxes"][j] is ragged[i] for j, i in enumerate(ours.selection.indices.tolist()))

    def test_points_with_the_cloud_of_each(self):
        """PyG's batch vector: points are no samples."""
        points, cloud = torch.randn(12, 3), torch.arange(4).repeat_interleave(3)
        with pytest.raises(ValueError, match="batch|1"):
            pruner()({"pos": points, "batch": cloud})
        with pytest.raises(ValueError, match="row"):
            pruner()(points, cloud)

    def test_a_graph_object_of_a_plain_class_is_refused_with_a_way_out(self):
        class Data:
            def __init__(self):
                self.x, self.batch = torch.randn(12, 3), torch.arange(4).repeat_interleave(3)

        with pytest.raises(TypeError, match="by="):
            pruner()(Data())

    def test_with_attach_a_second_input_is_refused(self):
        class Pooled(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = two_layers(3)

            def forward(self, pos, batch):
                return torch.zeros(4, 3).index_add(0, batch, self.net(pos))

        model = Pooled()
        with pfb.attach(model, "net.0", 0.5), pytest.raises(ValueError, match="'batch' beside 'pos'"):
            model(torch.randn(12, 3), torch.arange(4).repeat_interleave(3))


class StreamState(nn.Module):
    """A recurrent net that goes on from where the last batch ended: row i is stream i."""

    def __init__(self, held_in="attribute"):
        super().__init__()
        self.inside, self.rnn, self.head = nn.Linear(5, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)
        self.state = None
        self.held_in = held_in
        self.caches = {}
        if held_in == "buffer":
            del self.state
            self.register_buffer("state", None)

    def forward(self, x):
        h = self.inside(x)
        before = self.caches.get("state") if self.held_in == "dict" else self.state
        if before is not None and before.size(1) != len(h):
            before = None
        h, state = self.rnn(h, before)
        if self.held_in == "dict":
            self.caches["state"] = state.detach()
        else:
            self.state = state.detach()
        return self.head(h[:, -1])


class TestTheModelRemembersRows:
    """K5: state kept in the module between batches."""

    @pytest.mark.parametrize("held_in", ["attribute", "buffer", "dict"])
    def test_with_attach_it_is_told_once(self, held_in):
        model = StreamState(held_in)
        with pfb.attach(model, "inside", 0.5) as blocker, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(5):
                y = torch.randint(3, (N,))
                F.cross_entropy(model(torch.randn(N, 4, 5)), blocker.select(y)).backward()
                blocker.step()
        about = [str(w.message) for w in told if "remembers" in str(w.message)]
        assert len(about) == 1
        assert "state" in about[0]
        assert "BatchPruner" in about[0] or "paused" in about[0]

    def test_a_model_without_state_is_not_suspected(self):
        class Queue(nn.Module):
            """Statistics by channel, as many as are kept, and a queue of fixed length."""

            def __init__(self):
                super().__init__()
                self.net = nn.Sequential(nn.Linear(5, K), nn.BatchNorm1d(K), nn.Linear(K, 3))
                self.register_buffer("queue", torch.zeros(64, 3))
                self.register_buffer("prior", torch.zeros(K))
                self.weights = torch.ones(K)

            def forward(self, x):
                return self.net(x) + self.queue.mean(0) + self.prior.mean() + self.weights.mean()

        model = Queue()
        with pfb.attach(model, "net.0", 0.5) as blocker, warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(5):
                F.cross_entropy(model(torch.randn(N, 5)), blocker.select(torch.randint(3, (N,)))).backward()
                blocker.step()

    def test_with_a_pruner_rows_of_a_stream_change_too_and_views_of_time_are_the_way(self):
        """The pruner gives a smaller batch: a model that keeps state by rows resets where it is another
        length, as here; that rows are streams only the user can know, and leaves them whole.
        """
        model, ours = StreamState(), pruner()
        with ours.paused():
            x = torch.randn(N, 4, 5)
            assert ours(x) is x
            model(x)
        assert model.state.shape == (1, N, 8)
