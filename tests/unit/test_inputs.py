"""Where a model's inputs and its cut have their samples, and what looks like rows but is none."""

import copy

import pytest
import torch
from torch import nn

import pfb
from pfb.blocking.inputs import looks_flat
from tests import zoo


class TestFlatTargets:
    """The boxes of all images in one tensor whose first column says which image each is in."""

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)

        def forward(self, image, boxes):
            logits = self.head(self.a(image).relu().mean((2, 3)))
            dense = torch.zeros_like(logits)
            for i in range(len(logits)):
                dense[i, boxes[boxes[:, 0] == i, 1].long()] = 1
            return nn.functional.binary_cross_entropy_with_logits(logits, dense)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
    @pytest.mark.parametrize("importance", [None, pfb.Uniform()], ids=["rare", "uniform"])
    def test_as_many_as_images_by_chance_they_are_refused(self, dtype, importance):
        model = self.Detector()
        boxes = torch.tensor(
            [[0, 1], [0, 2], [1, 0], [3, 1], [4, 4], [6, 1], [7, 3], [8, 0], [9, 1], [9, 2]], dtype=dtype
        )
        attached = pfb.attach(model, "a", shallow="recompute", importance=importance)
        with attached, pytest.raises(ValueError, match=r"'boxes' of shape \(10, 2\) looks like a flat list of targets"):
            model(torch.randn(10, 3, 8, 8), boxes)

    @pytest.mark.parametrize("m", [7, 17])
    def test_any_other_number_is_no_batch(self, m):
        model = self.Detector()
        boxes = torch.stack([(torch.arange(m) % 10).sort().values, torch.randint(5, (m,))], 1)
        attached = pfb.attach(model, "a", shallow="recompute")
        with attached, pytest.raises(ValueError, match="`input boxes` must have the batch of 10 samples"):
            model(torch.randn(10, 3, 8, 8), boxes)

    def test_with_reuse_they_bypass_the_cut(self):
        model = self.Detector()
        with (
            pfb.attach(model, "a", shallow="reuse"),
            pytest.raises(ValueError, match="takes 'boxes' beside 'image'"),
        ):
            model(torch.randn(10, 3, 8, 8), torch.zeros(10, 2))

    @pytest.mark.parametrize(
        "rows",
        [
            torch.arange(8).repeat(8, 1),  # positions: [N, T]
            torch.randint(30000, (8, 12), generator=torch.Generator().manual_seed(0)),  # tokens
            torch.ones(8, 12, dtype=torch.bool).tril(),  # masks
            torch.nn.functional.one_hot(torch.arange(8), 8),
            torch.rand(8, 4, generator=torch.Generator().manual_seed(0)),  # boxes, one per image
            torch.zeros(8, 4),
            torch.arange(8).flip(0)[:, None].repeat(1, 2),
            torch.arange(8),  # labels that happen to be sorted
            torch.tensor([[0, 1], [1, 2], [2, 3]]),  # too few to tell
        ],
    )
    def test_what_has_one_row_per_sample_is_not_taken_for_them(self, rows):
        assert not looks_flat(rows, len(rows))


class Tower(nn.Module):
    """A vision transformer with its blocks on [T, N, C], as CLIP's."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(16, 2, 32, 0.0) for _ in range(2)))
        self.project = nn.Linear(16, 8)

    def forward(self, image):
        return self.project(self.blocks(self.patches(image).flatten(2).permute(2, 0, 1)).mean(0))


class TestSequenceFirst:
    def test_it_is_asked_where_the_samples_are(self, shallow):
        model = Tower()
        attached = pfb.attach(model, "blocks.0", shallow=shallow, importance=pfb.RareFirst())
        with attached, pytest.raises(ValueError, match=r"'blocks.0' holds a MultiheadAttention with batch_first=False"):
            model(torch.randn(10, 3, 16, 16))

    @pytest.mark.parametrize("n", [10, 16])
    def test_told_so_images_are_stopped_also_with_as_many_tokens_as_images(self, n, shallow):
        model = Tower().double()
        plain = copy.deepcopy(model)
        x = torch.randn(n, 3, 16, 16).double()  # 16 tokens
        rule = pfb.RareFirst()
        with pfb.attach(model, "blocks.0", 0.5, shallow=shallow, batch_dim=1, importance=rule) as blocker:
            torch.testing.assert_close(model(x), plain(x[blocker.selection.indices]))
            features = plain.blocks[0](plain.patches(x).flatten(2).permute(2, 0, 1)).mean(0)
            torch.testing.assert_close(blocker.features, features.float())

    def test_the_wrong_answer_is_noticed(self, shallow):
        model = Tower()
        attached = pfb.attach(model, "blocks.0", shallow=shallow, batch_dim=0, importance=pfb.RareFirst())
        with (
            attached,
            pytest.raises(ValueError, match=r"\(16, 10, 16\), whose dimension 0 is not the model's batch of 10"),
        ):
            model(torch.randn(10, 3, 16, 16))

    def test_a_sketch_of_images_needs_no_telling_of_the_cut(self):
        model = Tower().double()
        plain = copy.deepcopy(model)
        x = torch.randn(10, 3, 16, 16).double()
        for told in (None, 0, 1):
            with pfb.attach(model, "blocks.0", 0.5, batch_dim=told) as blocker:
                torch.testing.assert_close(model(x), plain(x[blocker.selection.indices]))

    @pytest.mark.parametrize("rule", [pfb.InverseDensity(), pfb.Uniform()])
    def test_it_is_asked_of_inputs_that_may_be_sequences_first(self, rule):
        """Nothing is scored at the cut, so the inputs alone must tell."""

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm, self.head = nn.LSTM(4, 8), nn.Linear(8, 3)

            def forward(self, x):
                return self.head(self.lstm(x)[0][-1])

        model, x = Net(), torch.randn(10, 10, 4)
        with (
            pfb.attach(model, "lstm", 0.5, importance=rule),
            pytest.raises(ValueError, match=r"LSTM with batch_first=False.*shallow=pfb.Recompute\(batch_dim=1\)"),
        ):
            model(x)
        with (
            pfb.attach(model, "lstm", 0.5, importance=rule, batch_dim=1),
            pytest.raises(ValueError, match=r"whose dimension 1 is not the model's batch of 5"),
        ):
            model(x)
        wiring = pfb.Recompute(batch_dim=1)
        with pfb.attach(model, "lstm", 0.5, importance=rule, shallow=wiring, batch_dim=1) as blocker:
            torch.testing.assert_close(model(x), model.eval()(x[:, blocker.selection.indices]))

    def test_a_recurrent_net_on_sequences_first(self, shallow):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.lstm, self.head = nn.Linear(4, 6), nn.LSTM(6, 8), nn.Linear(8, 3)

            def forward(self, x):
                return self.head(self.lstm(self.embed(x))[0][-1])

        model = Net().double()
        plain = copy.deepcopy(model)
        x = torch.randn(7, 10, 4).double()
        wiring = pfb.Reuse() if shallow == "reuse" else pfb.Recompute(batch_dim=1)
        for cut in ("embed", "lstm"):  # the latter also gives its states, [1, N, C]
            with pfb.attach(model, cut, 0.5, shallow=wiring, batch_dim=1) as blocker:
                torch.testing.assert_close(model(x), plain(x[:, blocker.selection.indices]))
                assert blocker.select(x, dim=1).shape == (7, 5, 4)

    @pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
    @pytest.mark.parametrize("n", [6, 10])
    def test_a_whole_transformer_with_masks_that_have_their_samples_first(self, n):
        """Masks [N, S] beside sequences [S, N, C], also with as many steps as samples."""

        class Translator(nn.Module):
            def __init__(self):
                super().__init__()
                self.source, self.target = nn.Linear(4, 8), nn.Linear(4, 8)
                self.transformer = nn.Transformer(8, 2, 1, 1, 16, 0.0)

            def forward(self, source, target, padding):
                return self.transformer(self.source(source), self.target(target), src_key_padding_mask=padding)

        model = Translator().double()
        plain = copy.deepcopy(model)
        source, target = torch.randn(10, n, 4).double(), torch.randn(5, n, 4).double()
        padding = torch.arange(10) >= torch.arange(n)[:, None] % 3 + 5
        recompute = pfb.Recompute(batch_dim=1)
        with pfb.attach(model, "source", 0.5, shallow=recompute, batch_dim=1) as blocker:
            out = model(source, target, padding)
            kept = blocker.selection.indices
            torch.testing.assert_close(out, plain(source[:, kept], target[:, kept], padding[kept]))

    def test_a_float_mask_is_known_by_the_batches_before(self):
        from pfb.selection.nested import select

        seen, kept = {}, torch.tensor([0, 2])
        assert select(torch.zeros(5, 4), kept, 4, "mask", 1, seen).shape == (5, 2)
        seen.clear()
        assert select(torch.zeros(4, 5), kept, 4, "mask", 1, seen).shape == (2, 5)
        assert torch.equal(select(torch.eye(4), kept, 4, "mask", 1, seen), torch.eye(4)[kept])

    @pytest.mark.parametrize("wrong", [-1, 1.0, True, "N"])
    def test_the_dimension_is_checked(self, wrong):
        with pytest.raises(ValueError, match="`batch_dim` must be a whole number"):
            pfb.attach(zoo.SmallNet(), "layer1", batch_dim=wrong)
        with pytest.raises(ValueError, match="`batch_dim` must be a whole number"):
            pfb.Recompute(batch_dim=wrong)


class Video(nn.Module):
    """Frames are folded into the batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, clip):
        frames = self.a(clip.flatten(0, 1)).mean((2, 3))
        return self.b(frames.view(len(clip), -1, 8).mean(1))


class TestTheCutsBatchIsTheModels:
    def test_frames_folded_into_the_batch_are_refused_by_name(self, shallow):
        model = Video()
        attached = pfb.attach(model, "a", shallow=shallow, importance=pfb.RareFirst())
        with (
            attached,
            pytest.raises(ValueError, match=r"the cut 'a' has an output of shape \(40.*the model's batch of 10"),
        ):
            model(torch.randn(10, 4, 3, 8, 8))

    def test_what_the_cut_makes_of_samples_is_nothing_to_a_sketch(self):
        model, clips = Video(), torch.randn(10, 4, 3, 8, 8)
        with pfb.attach(model, "a", 0.5) as blocker:
            torch.testing.assert_close(model(clips), model.eval()(clips[blocker.selection.indices]))

    def test_an_output_that_is_one_vector_is_refused(self, shallow):
        class Prompted(nn.Module):
            def __init__(self):
                super().__init__()
                self.prompt, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

            def forward(self, x):
                return self.head(x + self.prompt(torch.ones(1, 4)))

        model = Prompted()
        with (
            pfb.attach(model, "prompt", shallow=shallow, importance=pfb.RareFirst()),
            pytest.raises(ValueError, match="'prompt' has an output"),
        ):
            model(torch.randn(10, 6))


@pytest.mark.parametrize(
    ("shared", "message"), [("mask", r"write shared=\('mask',\)"), ((1,), "tuple of input names"), ([None], "names")]
)
@pytest.mark.parametrize("wiring", [pfb.Reuse, pfb.Recompute])
def test_names_of_shared_inputs_are_checked(wiring, shared, message):
    with pytest.raises(TypeError, match=message):
        wiring(shared=shared)
