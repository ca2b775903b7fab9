"""What people do, by public reports: with a BatchPruner training equals training on the kept
samples; with attach it is right, or refused or warned of with a way out that works.
"""

import copy
import dataclasses
import pickle
import threading
import typing
import warnings
from collections import Counter, defaultdict

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
        """A decision over all rows would move them: the batch is said to be in three parts."""
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
            torch.testing.assert_close(
                b, u[of_b.indices] @ (model[1].weight @ model[0].weight).T + model[1](model[0].bias)
            )


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

    def test_rows_that_are_streams_are_left_whole(self):
        """Only the user can know that they are."""
        model, ours = StreamState(), pruner()
        with ours.paused():
            x = torch.randn(N, 4, 5)
            assert ours(x) is x
            model(x)
        assert model.state.shape == (1, N, 8)


class TestWhatABatchHasInCommonGoesWithAStoppedSample:
    """K6: `arange(lengths.max())` in the forward, without the longest sequence (SpeechBrain)."""

    class Recognizer(nn.Module):
        def __init__(self, relative):
            super().__init__()
            self.inside, self.head, self.relative = nn.Linear(6, 8), nn.Linear(8, 3), relative

        def forward(self, wavs, lengths):
            h = self.inside(wavs)
            lengths = lengths * wavs.size(1) if self.relative else lengths
            steps = torch.arange(int(lengths.max()))
            mask = (steps < lengths[:, None])[:, :, None]
            return self.head((h[:, : len(steps)] * mask).sum(1))

    @pytest.mark.parametrize("relative", [True, False])
    def test_lengths_go_with_their_sequences(self, relative):
        lengths = torch.linspace(0.2, 1.0, N) if relative else torch.arange(1, N + 1)
        batch = torch.randn(N, N, 6), lengths, torch.randint(3, (N,))
        assert_trains_as_on_kept(
            self.Recognizer(relative),
            lambda model, b: F.cross_entropy(model(b[0], b[1]), b[2]),
            batch,
            lambda b, k: tuple(x[k] for x in b),
        )

    def test_with_attach_the_second_input_is_refused(self):
        model = self.Recognizer(False)
        with pfb.attach(model, "inside", 0.5), pytest.raises(ValueError, match="'lengths' beside 'wavs'.*BatchPruner"):
            model(torch.randn(N, N, 6), torch.arange(1, N + 1))


class TestACacheByWidth:
    """K7: raw audio padded to each batch's longest."""

    def test_a_hundred_widths_leave_nothing_behind(self):
        from pfb.features import cut

        ours = pruner()
        sizes = []
        for width in range(400, 500):
            kept = ours(torch.randn(N, width))
            assert kept.shape == (K, width)
            sizes.append(cut.fixed_normal.cache_info().currsize if hasattr(cut.fixed_normal, "cache_info") else 0)
        assert max(sizes) <= 64


class TestCountsOfTheWholeBatch:
    """K8: what is counted is counted after pruning. Trainers: test_transformers_heads."""

    def test_a_loss_divided_by_the_batchs_own_count(self):
        batch = {"x": torch.randn(N, 4, 5), "labels": torch.randint(-1, 3, (N, 4))}

        def loss(model, b):
            total = F.cross_entropy(
                model(b["x"]).flatten(0, 1), b["labels"].flatten(), ignore_index=-1, reduction="sum"
            )
            return total / (b["labels"] != -1).sum()

        assert_trains_as_on_kept(two_layers(), loss, batch, lambda b, k: {name: x[k] for name, x in b.items()})

    def test_a_count_that_the_loader_made(self):
        """A number is the whole batch's and stays; a tensor with one for each is selected."""
        batch = {"x": torch.randn(N, 5), "tokens": torch.arange(1.0, N + 1), "of_batch": 136.0}
        ours = pruner()
        kept = ours(batch)
        assert torch.equal(kept["tokens"], batch["tokens"][ours.selection.indices])
        assert kept["of_batch"] == 136.0


class TestWhatIsHeldByAnObject:
    """K10: images and mask as one object of a plain class (DETR), strings beside images."""

    class NestedTensor:
        def __init__(self, tensors, mask):
            self.tensors, self.mask = tensors, mask

    def test_a_plain_class_is_refused_with_a_way_out_that_works(self):
        batch = self.NestedTensor(torch.rand(N, 3, 8, 8), torch.zeros(N, 8, 8, dtype=torch.bool))
        targets = [{"labels": torch.arange(i % 3)} for i in range(N)]
        ours = pruner()
        with pytest.raises(TypeError, match="dataclass") as refused:
            ours(batch, targets, by=batch.tensors)
        assert "selection.indices" in str(refused.value)
        assert ours.steps == 0
        as_dataclass = dataclasses.make_dataclass("NestedTensor", ["tensors", "mask"])(batch.tensors, batch.mask)
        kept, of_kept = ours(as_dataclass, targets)
        rows = ours.selection.indices
        assert torch.equal(kept.tensors, batch.tensors[rows])
        assert torch.equal(kept.mask, batch.mask[rows])
        assert all(of_kept[j] is targets[i] for j, i in enumerate(rows.tolist()))

    def test_a_class_with_its_own_way_is_not_needed_where_parts_are_given(self):
        batch = self.NestedTensor(torch.rand(N, 3, 8, 8), torch.zeros(N, 8, 8, dtype=torch.bool))
        tensors, mask = pruner()(batch.tensors, batch.mask)
        assert len(tensors) == len(mask) == K

    def test_mixed_sources_with_weights_ids_and_names(self):
        batch = {
            "image": torch.rand(N, 3, 8, 8),
            "weight": torch.rand(N),
            "id": list(range(100, 100 + N)),
            "file": [f"{i}.png" for i in range(N)],
            "source": "web",
            "scale": (1.0, 2.0),
        }
        left = []
        ours = pruner(on_left_out=left.append)
        kept = ours(batch)
        rows = ours.selection.indices.tolist()
        assert kept["file"] == [f"{i}.png" for i in rows]
        assert kept["id"] == [100 + i for i in rows]
        assert kept["source"] == "web"
        assert kept["scale"] == (1.0, 2.0)
        assert sorted(kept["id"] + left[0]["id"]) == batch["id"], "which were left out, by id"

    def test_with_attach_strings_beside_images_are_told(self):
        class Captioner(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = two_layers()

            def forward(self, x, captions):
                return self.net(x) + len(captions[0])

        model = Captioner()
        with (
            pfb.attach(model, "net.0", 0.5),
            pytest.warns(UserWarning, match="'captions' beside its batch.*BatchPruner"),
        ):
            model(torch.randn(N, 5), ["a"] * N)

    def test_prefix_tuning(self):
        peft = pytest.importorskip("peft")
        from transformers import GPT2Config, GPT2LMHeadModel

        size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
        quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=50, **size, **quiet))
        tuned = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
        tokens = torch.randint(50, (N, 8))
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
        assert_trains_as_on_kept(
            tuned, lambda m, b: m(**b).loss, batch, lambda b, k: {name: x[k] for name, x in b.items()}
        )


class TestTheBatchIsNotTheFirstDimensionOfEverything:
    """K11: `position_ids [3, N, T]` beside `input_ids [N, T]`."""

    def batch(self, n=N):
        rows = torch.randperm(1000)[:n, None].expand(n, 6)
        return {"input_ids": torch.randint(50, (n, 6)), "position_ids": torch.stack([rows, rows, rows]), "rows": rows}

    def test_it_is_refused_and_the_message_says_how(self):
        ours = pruner()
        with pytest.raises(ValueError, match=r"position_ids.*dims={'position_ids': 1}"):
            ours(self.batch())
        kept = pruner(dims={"position_ids": 1})(self.batch())
        assert kept["position_ids"].shape == (3, K, 6)
        assert torch.equal(kept["position_ids"][1], kept["rows"])

    def test_of_three_samples_it_is_not_mistaken(self):
        """[3, 3, T]: rows of the first dimension are no samples, though there are three."""
        kept = pruner(dims={"position_ids": 1})(self.batch(3))
        assert torch.equal(kept["position_ids"][0], kept["rows"])
        assert kept["position_ids"].shape == (3, 2, 6)

    def test_sequence_first_inputs(self):
        x, y = torch.randn(7, N, 5), torch.arange(N)
        ours = pruner(dims={"0": 1})
        kept, labels = ours(x, y)
        assert torch.equal(kept, x[:, labels])

    def test_with_attach_the_second_input_is_refused(self):
        class Positions(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = two_layers(6)

            def forward(self, input_ids, position_ids):
                return self.net(input_ids.float()) + position_ids.sum()

        model, batch = Positions(), self.batch()
        del batch["rows"]
        with pfb.attach(model, "net.0", 0.5), pytest.raises(ValueError, match="'position_ids' beside"):
            model(**batch)


class TestAQueueOfWholeBatches:
    """K12: MoCo's queue, whose length must be a multiple of the batch."""

    class MoCo(nn.Module):
        def __init__(self, size=64):
            super().__init__()
            self.net = two_layers()
            self.register_buffer("queue", torch.zeros(size, 3))
            self.at = 0

        def forward(self, x):
            keys = self.net(x)
            assert len(self.queue) % len(keys) == 0
            self.queue[self.at : self.at + len(keys)] = keys.detach()
            self.at = (self.at + len(keys)) % len(self.queue)
            return keys @ self.queue.T

    def test_with_a_constant_batch_it_is_right(self):
        data = torch.utils.data.TensorDataset(torch.randn(100, 5))
        loader = pfb.prune_batches(
            torch.utils.data.DataLoader(data, 16), 0.3, fill=True, density=pfb.NeighbourMemory(32)
        )
        model, seen = self.MoCo(), 0
        for _ in range(3):
            expected = len(loader)
            batches = [x for (x,) in loader]
            assert len(batches) == expected
            for x in batches:
                model(x)
                assert torch.equal(model.queue[(model.at - 16) % 64 :][:16], model.net(x).detach())
            seen += len(batches)
        assert seen == 3 * sum(len(b) - int(0.3 * len(b)) for b in torch.arange(100).split(16)) // 16

    def test_with_attach_it_says_so_itself(self):
        model = self.MoCo()
        with pfb.attach(model, "net.0", 0.3), pytest.raises(AssertionError) as raised:
            model(torch.randn(N, 5))
        assert "BatchPruner" in raised.value.__notes__[0]


class TestModelsWithoutSubmodules:
    """K14: raw parameters, or one nn.Linear."""

    def test_a_pruner_needs_no_model(self):
        weight = torch.randn(5, 3, requires_grad=True)
        x, y = pruner()(torch.randn(N, 5), torch.randint(3, (N,)))
        F.cross_entropy(x @ weight, y).backward()
        assert weight.grad.abs().sum() > 0

    def test_attach_says_what_to_do(self):
        with pytest.raises((TypeError, ValueError), match="BatchPruner"):
            pfb.attach(nn.Linear(5, 3), prune=0.5)


class TestTheWholeStepIsCompiled:
    @pytest.fixture(autouse=True)
    def _fresh_compiler(self, monkeypatch):
        monkeypatch.setattr(torch._dynamo.utils, "counters", defaultdict(Counter))
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.filterwarnings("ignore")
    def test_with_the_pruner_inside(self):
        torch.manual_seed(0)
        model = two_layers()
        plain, ours = copy.deepcopy(model), pruner(seed=3)
        theirs = pruner(seed=3)

        @torch.compile(backend="eager", dynamic=False)
        def step(x, y):
            x, y = ours(x, y)
            return F.cross_entropy(model(x), y)

        for _ in range(3):
            x, y = torch.randn(N, 5), torch.randint(3, (N,))
            loss = step(x, y)
            loss.backward()
            u, v = theirs(x, y)
            F.cross_entropy(plain(u), v).backward()
            assert torch.equal(ours.selection.indices, theirs.selection.indices)
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
        assert ours.steps == 3

    @pytest.mark.filterwarnings("ignore")
    def test_with_a_scoring_pass_inside_which_leaves_no_trace(self):
        class Counting(nn.Module):
            calls: torch.Tensor

            def __init__(self):
                super().__init__()
                self.a, self.b, self.runs = nn.Linear(5, 8), nn.Linear(8, 3), 0
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, x):
                self.calls.add_(1)
                self.runs += 1
                return self.b(self.a(x).relu())

        model = Counting()
        plain = copy.deepcopy(model)
        ours, theirs = (
            pfb.BatchPruner(0.5, rule=pfb.RareFirst(), features=pfb.Shallow(m, "a")) for m in (model, plain)
        )

        @torch.compile(backend="eager", dynamic=False)
        def step(x):
            return model(ours(x))

        for count in (1, 2, 3):
            x = torch.randn(N, 5)
            torch.testing.assert_close(step(x), plain(theirs(x)))
            assert (int(model.calls), model.runs) == (count, count)

    @pytest.mark.filterwarnings("ignore")
    def test_a_model_compiled_in_place(self):
        model = two_layers()
        model.compile(backend="eager", dynamic=False)
        x, y = pruner()(torch.randn(N, 5), torch.randint(3, (N,)))
        assert len(model(x)) == len(y) == K


class Pair(typing.NamedTuple):
    x: torch.Tensor
    rows: torch.Tensor


@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    rows: torch.Tensor
    n: int = N


def kept_rows(kept):
    """Row numbers of a kept batch of any of the structures below, and its inputs' first column."""
    if isinstance(kept, (Pair, Sample)):
        return kept.rows, kept.x
    if hasattr(kept, "keys"):
        return kept["rows"], kept["x"]
    return kept[1], kept[0]


STRUCTURES = {
    "tuple": lambda x, r: (x, r),
    "list": lambda x, r: [x, r],
    "dict": lambda x, r: {"x": x, "rows": r},
    "named tuple": Pair,
    "dataclass": Sample,
    "NumPy": lambda x, r: {"x": x.numpy(), "rows": r.numpy()},
    "strings": lambda x, r: {"x": x, "rows": [str(i) for i in r.tolist()]},
    "ragged": lambda x, r: {"x": x, "rows": [torch.full((i % 3, 4), i) for i in r.tolist()]},
    "BatchEncoding": lambda x, r: __import__("transformers").BatchEncoding({"x": x, "rows": r}),
    "TensorDict": lambda x, r: pytest.importorskip("tensordict").TensorDict({"x": x, "rows": r}, batch_size=[len(x)]),
}


class TestEveryKindOfBatch:
    @pytest.mark.parametrize("n", [1, 2, 3, N])
    @pytest.mark.parametrize("kind", STRUCTURES)
    def test_rows_belong_together(self, kind, n):
        rows = torch.arange(100, 100 + n)
        x = torch.randn(n, 5)
        x[:, 0] = rows
        batch = STRUCTURES[kind](x, rows)
        ours = pruner(items=("rows",) if kind == "strings" else ())
        kept = ours(batch)
        assert type(kept) is type(batch)
        of_kept, inputs = kept_rows(kept)
        assert len(inputs) == max(n - n // 2, min(n, 2)) == len(of_kept)
        for row, number in zip(inputs, of_kept, strict=True):
            if kind == "ragged":
                assert number.shape == (int(row[0]) % 3, 4)
                assert (number == int(row[0])).all()
            else:
                assert int(row[0]) == int(number)

    def test_an_empty_batch_passes(self):
        ours = pruner()
        x, y = ours(torch.zeros(0, 5), torch.zeros(0))
        assert x.shape == (0, 5)
        assert y.shape == (0,)
        assert len(ours(torch.randn(N, 5))) == K, "and the next is as ever"

    @pytest.mark.parametrize("judged", [torch.ones(N, 5, dtype=torch.bool), torch.randn(N, 5, dtype=torch.complex64)])
    def test_what_no_sketch_knows_is_refused_and_by_is_the_way_out(self, judged):
        ours = pruner()
        with pytest.raises(TypeError, match="by="):
            ours(judged)
        kept = ours(judged, by=torch.randn(N, 5))
        assert torch.equal(kept, judged[ours.selection.indices])

    def test_a_sparse_part_is_selected_or_refused(self):
        sparse = torch.eye(N).to_sparse()
        ours = pruner()
        _, kept = ours(torch.randn(N, 5), sparse)
        assert torch.equal(kept.to_dense(), torch.eye(N)[ours.selection.indices])

    def test_nested_and_packed_are_refused(self):
        ours = pruner()
        nested = torch.nested.nested_tensor([torch.randn(3, 5)] * N, layout=torch.jagged)
        packed = pack_padded_sequence(torch.randn(N, 4, 5), torch.full((N,), 4), batch_first=True)
        for part in (nested, packed):
            with pytest.raises(TypeError, match="nested|Packed"):
                ours(torch.randn(N, 5), part)
        assert ours.steps == 0

    def test_an_input_that_requires_grad_keeps_its_graph(self):
        x = torch.randn(N, 5, requires_grad=True)
        ours = pruner()
        ours(x * 2).sum().backward()
        expected = torch.zeros(N, 5)
        expected[ours.selection.indices] = 2.0
        assert torch.equal(x.grad, expected)

    def test_under_inference_mode_and_after_it(self):
        ours = pruner()
        with torch.inference_mode():
            assert len(ours(torch.randn(N, 5))) == K
        for _ in range(3):
            x = ours(torch.randn(N, 5))
            two_layers()(x).sum().backward()
        with torch.inference_mode():
            inside = torch.randn(N, 5)
        assert len(ours(inside)) == K

    def test_under_autocast_the_choice_is_the_same(self):
        x = torch.randn(4, N, 3, 8, 8)
        chosen = []
        for enabled in (False, True):
            ours = pruner()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                chosen.append([(ours(part), ours.selection.indices.tolist())[1] for part in x])
        assert chosen[0] == chosen[1]

    def test_a_device_that_is_not_there(self):
        if torch.cuda.is_available():
            pytest.skip("it is")
        data = torch.utils.data.TensorDataset(torch.randn(N, 5))
        loader = pfb.prune_batches(torch.utils.data.DataLoader(data, 8), device="cuda")
        with pytest.raises((RuntimeError, AssertionError), match="(?i)cuda|nvidia"):
            next(iter(loader))
        with pytest.raises(RuntimeError, match="nonsense"):
            pfb.prune_batches(torch.utils.data.DataLoader(data, 8), device="nonsense")

    def test_two_sequences_are_not_taken_for_two_images(self):
        """Four samples [4, T, F] look like an image of four channels; a tuple of two like two."""
        for sizes in ((4, 9), (9, 4, 3)):
            ours = pruner()
            for n in sizes:
                a, b = ours(torch.randn(n, 8, 8), torch.randn(n, 8, 8))
                assert len(a) == len(b) == n - n // 2

    def test_row_numbers_of_the_whole_batch_are_refused(self):
        x = torch.randn(N, 5)
        with pytest.raises(ValueError, match="row numbers of the whole batch.*after pruning"):
            pruner()({"x": x, "partner": torch.arange(N).roll(1)})
        kept = pruner(items=("partner",))({"x": x, "partner": torch.arange(N).roll(1)})
        assert len(kept["partner"]) == K


class InWorkers(torch.utils.data.Dataset):
    def __len__(self):
        return 8 * N

    def __getitem__(self, i):
        return torch.randn(5, generator=torch.Generator().manual_seed(i)), i


class Collate:
    def __init__(self):
        self.pruner = pruner()

    def __call__(self, samples):
        return self.pruner(*torch.utils.data.default_collate(samples))


class TestProcessesAndCopies:
    @pytest.mark.parametrize("start", ["fork", "spawn"])
    def test_in_a_loaders_workers(self, start):
        """Each worker has a copy with a memory of its own."""
        settings = {"num_workers": 2, "multiprocessing_context": start, "collate_fn": Collate()}
        given = []
        for x, i in torch.utils.data.DataLoader(InWorkers(), N, **settings):
            assert len(x) == K
            expected = [torch.randn(5, generator=torch.Generator().manual_seed(int(j))) for j in i]
            assert torch.equal(x, torch.stack(expected))
            given.append((i % N).tolist())
        assert len({tuple(g) for g in given}) > 1, "not the same rows in every batch"

    def test_threads_with_a_pruner_each(self):
        failed = []

        def work(seed):
            ours = pruner(seed=seed)
            for _ in range(20):
                x, rows = ours(x_all := torch.randn(N, 5), torch.arange(N))
                if not torch.equal(x, x_all[rows]):
                    failed.append(seed)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p)), "state"])
    def test_a_copy_in_the_middle_of_a_run_goes_on_as_the_original(self, way):
        ours = pruner()
        data = torch.randn(20, N, 5)
        for x in data[:10]:
            ours(x)
        if way == "state":
            other = pruner(seed=5)
            other.load_state_dict(copy.deepcopy(ours.state_dict()))
        else:
            other = way(ours)
        for x in data[10:]:
            assert torch.equal(ours(x), other(x))

    def test_the_trainings_random_stream_is_untouched(self):
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        pruner()(torch.randn(N, 5, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(torch.rand(3), expected)


class TestSkippingWhatAnEpochHasGiven:
    def test_accelerates_skip_is_not_pruned_and_the_loaders_own_is(self):
        """It builds a plain loader from the parts of the old one; a state does what it is for."""
        from accelerate import skip_first_batches

        data = torch.utils.data.TensorDataset(torch.randn(64, 5))

        def made():
            return pfb.prune_batches(torch.utils.data.DataLoader(data, N), density=pfb.NeighbourMemory(32))

        assert [len(x) for (x,) in skip_first_batches(made(), 2)] == [N, N], "a limit that docs/limits.md names"
        first = made()
        batches = iter(first)
        whole = [next(batches)[0], next(batches)[0]]
        state = copy.deepcopy(first.state_dict())
        whole += [x for (x,) in batches]
        second = made()
        second.load_state_dict(state)
        rest = [x for (x,) in second]
        assert len(rest) == 2
        assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))
