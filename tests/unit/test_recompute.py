"""The wiring that scores first: its settings, its scoring pass, and the inputs that it selects."""

import copy

import pytest
import torch
from torch import nn

import pfb
from pfb.lab.baselines import PerClass
from tests import zoo


def test_recompute_selects_every_input_and_the_labels_inside_the_forward():
    model, plain = zoo.Bypass().double(), zoo.Bypass().double()
    plain.load_state_dict(model.state_dict())
    x, gain = torch.randn(10, 6).double(), torch.rand(10).double()
    labels = torch.randint(3, (10,))
    blocker = pfb.attach(model, "shallow", 0.4, shallow="recompute")
    out = model(x, gain=gain, labels=labels)
    kept = blocker.selection.indices
    expected = plain(x[kept], gain=gain[kept], labels=labels[kept])
    assert out["logits"].shape == (6, 3)
    torch.testing.assert_close(out["loss"], expected["loss"])
    out["loss"].backward()
    expected["loss"].backward()
    torch.testing.assert_close(model.shallow.weight.grad, plain.shallow.weight.grad)


def test_a_pair_of_towers_with_its_contrastive_loss_inside():
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49, "bos_token_id": 1}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    plain = copy.deepcopy(model)
    batch = {
        "input_ids": torch.randint(2, 49, (10, 8)),
        "attention_mask": (torch.arange(8) < torch.arange(10)[:, None] % 4 + 4).long(),
        "pixel_values": torch.randn(10, 3, 16, 16),
    }
    with pfb.attach(model, "vision_model.encoder.layers.0", 0.4, shallow="recompute") as blocker:
        out = model(**batch, return_loss=True)
        kept = blocker.select(batch)
    assert out.logits_per_image.shape == (6, 6)
    torch.testing.assert_close(out.loss, plain(**kept, return_loss=True).loss)


@pytest.mark.parametrize("call", ["positional", "keyword"])
def test_shared_inputs_are_left_whole(call):
    model = zoo.ClassWeighted()
    x, weight = torch.randn(4, 6), torch.rand(4)  # as long as the batch
    arguments = ((x, weight), {}) if call == "positional" else ((x,), {"class_weight": weight})
    with pfb.attach(model, "shallow", 0.5, shallow=pfb.Recompute(shared=("class_weight",))):
        assert model(*arguments[0], **arguments[1]).shape == (2, 4)


def test_recompute_names_an_input_that_is_not_a_batch():
    model = zoo.ClassWeighted()
    blocker = pfb.attach(model, "shallow", 0.5, shallow="recompute")
    with pytest.raises(ValueError, match=r"`input class_weight`.*10 samples.*shared"):
        model(torch.randn(10, 6), class_weight=torch.rand(4))
    blocker.detach()


class TestBatchNorm:
    def test_running_statistics_move_once_and_by_the_kept_samples(self):
        model = zoo.SmallNet("batch")
        plain = copy.deepcopy(model)
        for batchnorm in ("running", "batch"):
            with pfb.attach(model, "layer2", 0.5, shallow=pfb.Recompute(batchnorm=batchnorm)) as blocker:
                x = torch.randn(20, 3, 8, 8)
                model(x)
                plain(x[blocker.selection.indices])
            for (name, a), b in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
                torch.testing.assert_close(a, b, msg=f"{batchnorm}: {name}")

    @pytest.mark.parametrize("batchnorm", ["running", "batch"])
    def test_the_scoring_pass_normalises_as_asked(self, batchnorm):
        model = zoo.SmallNet("batch")
        twin = copy.deepcopy(model).train(batchnorm == "batch")
        other = copy.deepcopy(model).train(batchnorm != "batch")
        x = torch.randn(20, 3, 8, 8) * 3 + 1
        blocker = pfb.attach(
            model, "layer1", 0.5, shallow=pfb.Recompute(batchnorm=batchnorm), importance=pfb.RareFirst()
        )
        model(x)
        expected = twin.layer1(twin.stem(x)).mean((2, 3))
        torch.testing.assert_close(blocker.features, expected)
        assert not torch.allclose(expected, other.layer1(other.stem(x)).mean((2, 3)), atol=1e-2)
        blocker.detach()

    def test_modes_are_restored_also_after_an_error(self):
        model = zoo.SmallNet("batch")
        model.layer2.eval()
        modes = [m.training for m in model.modules()]
        pfb_blocker = pfb.attach(
            model, "layer1", 0.5, shallow=pfb.Recompute(batchnorm="batch"), importance=pfb.RareFirst()
        )
        model(torch.randn(8, 3, 8, 8))
        assert [m.training for m in model.modules()] == modes
        with pytest.raises(RuntimeError):
            model(torch.randn(8, 4, 8, 8))  # wrong channels
        assert [m.training for m in model.modules()] == modes
        assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        pfb_blocker.detach()


def test_dropout_does_not_disturb_the_score():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    with pfb.attach(model, "1", 0.5, shallow="recompute", importance=pfb.RareFirst()) as blocker:
        x = torch.randn(10, 6)
        model(x)
        torch.testing.assert_close(blocker.features, model[0](x))


def test_a_model_of_one_size_says_so_when_it_is_scored_at_half():
    class OneSize(nn.Module):
        def forward(self, x):
            assert x.shape[-1] == 8, "8 pixels"
            return x

    model = nn.Sequential(OneSize(), nn.Conv2d(3, 4, 3))
    message = r"(?s)shrunk by `scale` \(got 0.5\): 8 pixels.*Leave it at 1"
    blocker = pfb.attach(model, "1", 0.5, shallow=pfb.Recompute(scale=0.5), importance=pfb.RareFirst())
    with blocker, pytest.raises(RuntimeError, match=message):
        model(torch.randn(8, 3, 8, 8))


def test_scoring_at_half_the_resolution():
    model = zoo.SmallNet("group")
    x = torch.randn(20, 3, 8, 8)
    with pfb.attach(model, "layer1", 0.5, shallow=pfb.Recompute(scale=0.5), importance=pfb.RareFirst()) as blocker:
        assert model(x).shape[0] == 10
        small = nn.functional.avg_pool2d(x, 2)
        torch.testing.assert_close(blocker.features, model.layer1(model.stem(small)).mean((2, 3)))
    model = zoo.mlp(6, 8, 3)
    with (
        pfb.attach(model, "0", shallow=pfb.Recompute(scale=0.5), importance=pfb.RareFirst()),
        pytest.raises(ValueError, match="needs images"),
    ):
        model(torch.randn(10, 6))


def test_the_scoring_pass_alone_runs_in_low_precision():
    model, seen = zoo.SmallNet(), []
    model.layer1.register_forward_hook(lambda module, args, output: seen.append((len(output), output.dtype)))
    with pfb.attach(model, "layer1", 0.5, shallow=pfb.Recompute(dtype=torch.bfloat16)) as blocker:
        out = model(torch.randn(8, 3, 8, 8))
        out.sum().backward()
        blocker.step()
    assert seen == [(4, torch.float32)], "the scoring pass ends at the cut, before other hooks"
    assert out.dtype == torch.float32
    assert all(p.grad is not None for p in model.parameters()), "no weight was lost in autocast's cache"
    assert blocker.features.dtype == torch.float32


@pytest.mark.parametrize("importance", [pfb.Uniform(), PerClass(pfb.Uniform())])
def test_a_criterion_that_reads_no_features_needs_no_scoring_pass(importance):
    model, runs = zoo.SmallNet(), []
    model.stem.register_forward_hook(lambda module, args, output: runs.append(len(output)))
    with pfb.attach(model, "layer1", 0.5, shallow="recompute", importance=importance) as blocker:
        for _ in range(3):
            if isinstance(importance, PerClass):
                importance.see(torch.arange(8) % 2)
            assert len(model(torch.randn(8, 3, 8, 8))) == len(blocker.select(torch.arange(8))) == 4
            blocker.step()
    assert runs == [4, 4, 4]


def test_without_a_scoring_pass_the_batch_is_found_among_the_inputs():
    model = zoo.ClassWeighted()
    uniform = {"shallow": "recompute", "importance": pfb.Uniform()}
    apart = {"shallow": pfb.Recompute(shared=("class_weight",)), "importance": pfb.Uniform()}
    with pfb.attach(model, "shallow", 0.5, **apart):
        assert model(class_weight=torch.rand(4), x=torch.randn(10, 6)).shape == (5, 4)
    with pfb.attach(model, "shallow", 0.5, **uniform), pytest.raises(ValueError, match="no batch of tensors"):
        model(None, None)


def test_low_precision_changes_features_only_a_little():
    torch.manual_seed(0)
    model, x = zoo.SmallNet(), torch.randn(8, 3, 8, 8)
    features = []
    for dtype in (None, torch.bfloat16):
        with pfb.attach(
            model, "layer1", 0.5, shallow=pfb.Recompute(dtype=dtype), importance=pfb.RareFirst()
        ) as blocker:
            model(x)
            features.append(blocker.features)
    assert not torch.equal(*features), "it did run in low precision"
    torch.testing.assert_close(*features, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"dtype": torch.float64}, ValueError, "`dtype`.*float64"),
        ({"dtype": "bf16"}, ValueError, "`dtype`.*'bf16'"),
        ({"scale": 0.0}, ValueError, r"\(0, 1\] \(got 0.0\)"),
        ({"scale": True}, ValueError, "`scale`"),
        ({"batchnorm": "none"}, ValueError, "`batchnorm`.*'none'"),
        ({"shared": "mask"}, TypeError, r"shared=\('mask',\)"),
    ],
)
def test_settings_of_recompute_are_checked_where_they_are_made(wrong, error, message):
    with pytest.raises(error, match=message):
        pfb.Recompute(**wrong)


def test_recompute_keeps_activations_for_the_kept_samples_only():
    from pfb.utils.timing import count_saved_bytes

    saved = {}
    for name in ("full", "reuse", "recompute"):
        model = zoo.SmallNet()
        blocker = None if name == "full" else pfb.attach(model, "layer2", 0.5, shallow=name)
        with count_saved_bytes() as count:
            out = model(torch.randn(64, 3, 16, 16))
        saved[name] = count.total
        del out, blocker
    assert saved["recompute"] < 0.6 * saved["full"]
    assert saved["recompute"] < saved["reuse"] <= 1.1 * saved["full"]
