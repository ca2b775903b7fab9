"""Where a model's inputs and its cut have their samples, and what looks like rows but is none."""

import copy

import pytest
import torch
from torch import nn

import pfb
from pfb.pruning.flat import looks_flat


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

    def test_they_bypass_the_cut(self):
        model = self.Detector()
        with (
            pfb.attach(model, "a"),
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
    def test_it_is_asked_where_the_samples_are(self):
        model = Tower()
        attached = pfb.attach(model, "blocks.0", rule=pfb.RareFirst())
        with attached, pytest.raises(ValueError, match=r"'blocks.0' holds a MultiheadAttention with batch_first=False"):
            model(torch.randn(10, 3, 16, 16))

    @pytest.mark.parametrize("n", [10, 16])
    def test_told_so_images_are_stopped_also_with_as_many_tokens_as_images(self, n):
        model = Tower().double()
        plain = copy.deepcopy(model)
        x = torch.randn(n, 3, 16, 16).double()  # 16 tokens
        rule = pfb.RareFirst()
        with pfb.attach(model, "blocks.0", 0.5, batch_dim=1, rule=rule) as blocker:
            torch.testing.assert_close(model(x), plain(x[blocker.selection.indices]))
            features = plain.blocks[0](plain.patches(x).flatten(2).permute(2, 0, 1)).mean(0)
            torch.testing.assert_close(blocker.features, features.float())

    def test_the_wrong_answer_is_noticed(self):
        model = Tower()
        attached = pfb.attach(model, "blocks.0", batch_dim=0, rule=pfb.RareFirst())
        with (
            attached,
            pytest.raises(ValueError, match=r"\(16, 10, 16\), whose dimension 0 is not the model's batch of 10"),
        ):
            model(torch.randn(10, 3, 16, 16))

    def test_a_float_mask_is_known_by_the_batches_before(self):
        from pfb.selection.select import select

        seen, kept = {}, torch.tensor([0, 2])
        assert select(torch.zeros(5, 4), kept, 4, "mask", 1, seen).shape == (5, 2)
        seen.clear()
        assert select(torch.zeros(4, 5), kept, 4, "mask", 1, seen).shape == (2, 5)
        assert torch.equal(select(torch.eye(4), kept, 4, "mask", 1, seen), torch.eye(4)[kept])


class Video(nn.Module):
    """Frames are folded into the batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, clip):
        frames = self.a(clip.flatten(0, 1)).mean((2, 3))
        return self.b(frames.view(len(clip), -1, 8).mean(1))


class TestTheCutsBatchIsTheModels:
    def test_frames_folded_into_the_batch_are_refused_by_name(self):
        model = Video()
        attached = pfb.attach(model, "a", rule=pfb.RareFirst())
        with (
            attached,
            pytest.raises(ValueError, match=r"the cut 'a' has an output of shape \(40.*the model's batch of 10"),
        ):
            model(torch.randn(10, 4, 3, 8, 8))

    def test_an_output_that_is_one_vector_is_refused(self):
        class Prompted(nn.Module):
            def __init__(self):
                super().__init__()
                self.prompt, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

            def forward(self, x):
                return self.head(x + self.prompt(torch.ones(1, 4)))

        model = Prompted()
        with (
            pfb.attach(model, "prompt", rule=pfb.RareFirst()),
            pytest.raises(ValueError, match="'prompt' has an output"),
        ):
            model(torch.randn(10, 6))
