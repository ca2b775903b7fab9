"""Both wirings are exact: the same samples go on, with the gradients of a model that never saw the
others.
"""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pfb
from pfb.lab.baselines import PerClass
from tests import reference, zoo


def batch(n=20):
    return torch.randn(n, 3, 8, 8, dtype=torch.float64), torch.randint(5, (n,))


def trained_steps(shallow, steps, prune=0.4, model_seed=0, cut="layer1"):
    """Train a model without batch statistics; returns it, each step's indices and the last
    gradients.
    """
    torch.manual_seed(model_seed)
    model = zoo.SmallNet().double()
    blocker = pfb.attach(model, cut, prune, shallow=shallow, estimator=pfb.DensityEstimator(8, 0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    chosen = []
    for _ in range(steps):
        x, y = batch()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), blocker.select(y)).backward()
        chosen.append(blocker.selection.indices.tolist())
        optimizer.step()
        blocker.step()
    return model, chosen, {name: p.grad for name, p in model.named_parameters()}


def test_gradients_equal_those_of_the_kept_samples_alone(shallow):
    model = zoo.SmallNet().double()
    plain = copy.deepcopy(model)
    blocker = pfb.attach(model, "layer1", 0.4, shallow=shallow, estimator=pfb.DensityEstimator(8))
    for _ in range(4):
        x, y = batch()
        model.zero_grad()
        nn.functional.cross_entropy(model(x), blocker.select(y)).backward()
        expected = reference.gradients_of_kept(plain, x, y, blocker.selection.indices)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-12)
        blocker.step()
    assert blocker.estimator.ready


def test_both_wirings_select_the_same_samples_and_learn_the_same():
    model_a, chosen_a, gradients_a = trained_steps("reuse", 6)
    model_b, chosen_b, gradients_b = trained_steps("recompute", 6)
    assert chosen_a == chosen_b
    for name in gradients_a:
        torch.testing.assert_close(gradients_a[name], gradients_b[name], rtol=1e-10, atol=1e-12)
    for a, b in zip(model_a.parameters(), model_b.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_selection_is_the_rarest_by_the_literal_density(shallow):
    """End to end: features, density, importance and choice against the reference, without the
    random term.
    """
    model = zoo.SmallNet()
    estimator = pfb.DensityEstimator(8, 0.1)
    blocker = pfb.attach(model, "layer1", 0.4, shallow=shallow, importance=pfb.RareFirst(0.0), estimator=estimator)
    literal = reference.Estimator(8, 0.1)
    for step in range(6):
        x = torch.randn(20, 3, 8, 8)
        model(x)
        with torch.no_grad():
            features = model.layer1(model.stem(x)).mean((2, 3))
        kept = blocker.selection.indices
        if step > 0:
            density = literal.log_density(features)
            assert kept.tolist() == density.argsort()[:12].sort().values.tolist()
        literal.step(features[kept])
        blocker.step()


def test_names_parameters_and_state_dict_stay(shallow):
    model = zoo.SmallNet()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    with pfb.attach(model, "layer1", 0.4, shallow=shallow) as blocker:
        model(torch.randn(8, 3, 8, 8)).sum().backward()
        blocker.step()
        assert list(model.state_dict()) == list(before)
        assert [name for name, _ in model.named_modules()] == modules
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


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


def test_reuse_fails_loudly_where_an_input_bypasses_the_cut():
    model = zoo.Bypass()
    with pfb.attach(model, "shallow", 0.9, shallow=pfb.Reuse(shared=("gain",))):
        with pytest.raises(RuntimeError, match="size") as failed:
            model(torch.randn(10, 6), gain=torch.rand(10))
        assert 'shallow="recompute"' in failed.value.__notes__[0], "the way out"
        with pytest.raises(TypeError) as failed:
            model(torch.randn(10, 6), gian=None)
        assert not hasattr(failed.value, "__notes__"), "an error of another origin is left alone"


def test_other_hooks_on_the_cut_see_what_goes_on():
    model, seen = zoo.mlp(6, 8, 3), []
    model[0].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    with pfb.attach(model, "0", 0.5):
        model(torch.randn(10, 6))
    assert seen == [5]


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


def test_a_layer_that_runs_twice(shallow):
    model = zoo.TwiceCalled()
    blocker = pfb.attach(model, "block", 0.5, shallow=shallow)
    if shallow == "reuse":
        with pytest.raises(RuntimeError, match="ran twice"):
            model(torch.randn(8, 8))
    else:
        assert model(torch.randn(8, 8)).shape == (4, 3)
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
        blocker = pfb.attach(model, "layer1", 0.5, shallow=pfb.Recompute(batchnorm=batchnorm))
        model(x)
        expected = twin.layer1(twin.stem(x)).mean((2, 3))
        torch.testing.assert_close(blocker.features, expected)
        assert not torch.allclose(expected, other.layer1(other.stem(x)).mean((2, 3)), atol=1e-2)
        blocker.detach()

    def test_modes_are_restored_also_after_an_error(self):
        model = zoo.SmallNet("batch")
        model.layer2.eval()
        modes = [m.training for m in model.modules()]
        pfb_blocker = pfb.attach(model, "layer1", 0.5, shallow=pfb.Recompute(batchnorm="batch"))
        model(torch.randn(8, 3, 8, 8))
        assert [m.training for m in model.modules()] == modes
        with pytest.raises(RuntimeError):
            model(torch.randn(8, 4, 8, 8))  # wrong channels
        assert [m.training for m in model.modules()] == modes
        assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        pfb_blocker.detach()


def test_dropout_does_not_disturb_the_score():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    with pfb.attach(model, "1", 0.5, shallow="recompute") as blocker:
        x = torch.randn(10, 6)
        model(x)
        torch.testing.assert_close(blocker.features, model[0](x))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_around_the_cut(use_reentrant, shallow):
    """The checkpointed part runs again in backward and must take the same decision, several
    forwards included.
    """
    model = zoo.Checkpointed(use_reentrant).double()
    plain = copy.deepcopy(model)
    blocker = pfb.attach(model, "block", 0.4, shallow=shallow, estimator=pfb.DensityEstimator(4))
    for _ in range(3):
        model.zero_grad()
        plain.zero_grad()
        loss, expected = 0, 0
        for _ in range(2):  # two forwards before one backward
            # Reentrant checkpointing asks for an input with gradients; a leaf would be warned of.
            x, y = torch.randn(10, 6, dtype=torch.float64, requires_grad=True).clone(), torch.randint(3, (10,))
            loss = loss + nn.functional.cross_entropy(model(x), blocker.select(y))
            kept = blocker.selection.indices
            expected = expected + nn.functional.cross_entropy(plain(x[kept]), y[kept])
        with blocker.paused():  # one that nothing is pruned in
            loss = loss + model(x).square().mean()
            expected = expected + plain(x).square().mean()
        seen = 0 if blocker.estimator.counts is None else int(blocker.estimator.counts.sum())
        loss.backward()
        expected.backward()
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-11)
        blocker.step()
        if seen:
            assert int(blocker.estimator.counts.sum()) == seen + 12, "a replay must not count its samples again"


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_around_the_whole_model(use_reentrant, shallow):
    model = zoo.mlp(6, 8, 8, 3).double()
    plain = copy.deepcopy(model)
    blocker = pfb.attach(model, "1", 0.4, shallow=shallow)
    x = torch.randn(10, 6, dtype=torch.float64, requires_grad=True).clone()
    out = checkpoint(model, x, use_reentrant=use_reentrant)
    if use_reentrant:  # its first run is without gradients, so nothing was pruned
        assert out.shape == (10, 3)
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            out.sum().backward()
    else:
        out.square().sum().backward()
        plain(x[blocker.selection.indices]).square().sum().backward()
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    blocker.detach()


def test_autocast_does_not_lose_the_shallow_gradients():
    """Weights cast in the scoring pass, without graph, must not be served to the forward proper
    from autocast's cache.
    """
    model = zoo.mlp(6, 16, 16, 3)
    with pfb.attach(model, "1", 0.4, shallow="recompute") as blocker:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(torch.randn(10, 6)), blocker.select(torch.randint(3, (10,))))
        loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_model_of_one_size_says_so_when_it_is_scored_at_half():
    class OneSize(nn.Module):
        def forward(self, x):
            assert x.shape[-1] == 8, "8 pixels"
            return x

    model = nn.Sequential(OneSize(), nn.Conv2d(3, 4, 3))
    message = r"(?s)shrunk by `scale` \(got 0.5\): 8 pixels.*Leave it at 1"
    blocker = pfb.attach(model, "1", 0.5, shallow=pfb.Recompute(scale=0.5))
    with blocker, pytest.raises(RuntimeError, match=message):
        model(torch.randn(8, 3, 8, 8))


def test_scoring_at_half_the_resolution():
    model = zoo.SmallNet("group")
    x = torch.randn(20, 3, 8, 8)
    with pfb.attach(model, "layer1", 0.5, shallow=pfb.Recompute(scale=0.5)) as blocker:
        assert model(x).shape[0] == 10
        small = nn.functional.avg_pool2d(x, 2)
        torch.testing.assert_close(blocker.features, model.layer1(model.stem(small)).mean((2, 3)))
    model = zoo.mlp(6, 8, 3)
    with (
        pfb.attach(model, "0", shallow=pfb.Recompute(scale=0.5)),
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


@pytest.mark.parametrize("settings", [{"features": lambda output: output.mean((2, 3))}, {"channel_dim": 2}])
def test_a_criterion_that_reads_no_features_needs_no_settings_for_them(settings, shallow):
    """They describe the cut's output, which is not even computed for it under recompute."""
    model = zoo.SmallNet()
    with pfb.attach(model, "layer1", 0.5, shallow=shallow, importance=pfb.Uniform(), **settings) as blocker:
        assert model(torch.randn(8, 3, 8, 8)).shape == (4, 5)
        assert blocker.last_log_density is None


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


def test_without_a_scoring_pass_a_replay_takes_its_own_forwards_decision():
    """Two checkpointed forwards, and backward through the first one first."""
    torch.manual_seed(0)
    model, plain = zoo.mlp(6, 8, 3).double(), zoo.mlp(6, 8, 3).double()
    plain.load_state_dict(model.state_dict())
    with pfb.attach(model, "0", 0.5, shallow="recompute", importance=pfb.Uniform()) as blocker:
        passes = []
        for x in torch.randn(2, 10, 6, dtype=torch.float64):
            out = checkpoint(model, x, use_reentrant=False)
            passes.append((out, plain(x[blocker.selection.indices])))
        for out, expected in passes:
            out.square().sum().backward()
            expected.square().sum().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_low_precision_changes_features_only_a_little():
    torch.manual_seed(0)
    model, x = zoo.SmallNet(), torch.randn(8, 3, 8, 8)
    features = []
    for dtype in (None, torch.bfloat16):
        with pfb.attach(model, "layer1", 0.5, shallow=pfb.Recompute(dtype=dtype)) as blocker:
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


def test_a_wiring_is_its_name_with_default_settings():
    for name, wiring in (("reuse", pfb.Reuse()), ("recompute", pfb.Recompute())):
        for shallow in (name, wiring):
            with pfb.attach(zoo.SmallNet(), "layer1", shallow=shallow) as blocker:
                assert blocker.shallow == name
    for wrong in ("both", pfb.Reuse, None):
        with pytest.raises(ValueError, match="with brackets"):
            pfb.attach(zoo.SmallNet(), "layer1", shallow=wrong)


def test_a_frozen_shallow_part(shallow):
    """Shallow layers in evaluation mode and without gradients are still cut at: the deep part is
    what costs.
    """
    model = zoo.SmallNet("batch")
    model.stem.requires_grad_(False)
    model.layer1.requires_grad_(False).eval()
    with pfb.attach(model, "layer1", 0.5, shallow=shallow) as blocker:
        out = model(torch.randn(10, 3, 8, 8))
        assert out.shape[0] == 5
        out.sum().backward()
        blocker.step()
    assert not model.layer1.training


def test_channels_last_is_kept_through_the_cut():
    model = zoo.SmallNet().to(memory_format=torch.channels_last)
    formats = []
    model.layer2.register_forward_pre_hook(
        lambda m, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    with pfb.attach(model, "layer1", 0.5):
        model(torch.randn(8, 3, 8, 8).to(memory_format=torch.channels_last))
    assert formats == [True]


def test_recompute_keeps_activations_for_the_kept_samples_only():
    from pfb.measure import count_saved_bytes

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
