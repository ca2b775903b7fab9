"""Features of three kinds, two densities and the rules, any with any, in both wirings."""

import contextlib

import pytest
import torch
from torch import nn

import pfb
from tests import reference, zoo


def train(model, blocker, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), blocker.select(y)).backward()
        optimizer.step()
        blocker.step()


def batches(steps=4, n=20):
    return [(torch.randn(n, 3, 8, 8), torch.randint(5, (n,))) for _ in range(steps)]


class OfInput:
    """A user's own features of the model's input."""

    of = "input"

    def __call__(self, x):
        return x.mean(3).flatten(1)


FEATURES = ["cut", "cut-spread", "sketch", "momentum", lambda output: output.mean((2, 3)), OfInput()]
WIDTHS = [8, 16, 38, 16, 8, 24]


@pytest.mark.parametrize(("features", "width"), [*zip(FEATURES, WIDTHS, strict=True)])
@pytest.mark.parametrize("density", [pfb.DensityEstimator, pfb.NeighbourMemory])
@pytest.mark.parametrize("rule", [pfb.RareFirst, pfb.InverseDensity])
def test_any_of_each_with_any_other_and_exact_gradients(shallow, features, width, density, rule):
    if features == "momentum" and shallow == "reuse":
        pytest.skip("refused")
    model = zoo.SmallNet().double()
    blocker = pfb.attach(
        model, "layer1", 0.4, shallow=shallow, features=features, estimator=density(16), importance=rule()
    )
    data = [(x.double(), y) for x, y in batches()]
    train(model, blocker, data)
    assert blocker.features.shape == (20, width)
    assert blocker.features.dtype == torch.float32
    assert blocker.estimator.ready
    x, y = data[0]
    model.zero_grad()
    nn.functional.cross_entropy(model(x), blocker.select(y)).backward()
    kept = blocker.selection.indices
    assert len(kept) == 12
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    with blocker.paused():
        expected = reference.gradients_of_kept(model, x, y, kept)
    for name, grad in gradients.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-9, atol=1e-12)


def test_inverse_density_brings_what_it_needs_and_leaves_what_was_given(shallow):
    def made(**arguments):
        blocker = pfb.attach(zoo.SmallNet(), "layer1", shallow=shallow, **arguments)
        return blocker.state_dict()["features"], type(blocker.estimator)

    assert made() == made(importance=pfb.InverseDensity()) == ("sketch", pfb.NeighbourMemory)
    assert made(importance=pfb.RareFirst()) == ("cut", pfb.DensityEstimator)
    own = {"features": "cut", "estimator": pfb.DensityEstimator()}
    assert made(importance=pfb.InverseDensity(), **own) == ("cut", pfb.DensityEstimator)


def test_features_of_the_input_need_no_scoring_pass():
    model, runs = zoo.SmallNet(), []
    model.stem.register_forward_hook(lambda module, args, output: runs.append(len(output)))
    with pfb.attach(model, "layer1", 0.5, shallow="recompute", importance=pfb.InverseDensity()) as blocker:
        train(model, blocker, batches())
    assert runs == [10] * 4


def test_a_copy_is_stopped_and_the_rest_drawn_alike(shallow):
    torch.manual_seed(1)
    model, image = zoo.SmallNet(), torch.randn(1, 3, 8, 8)
    blocker = pfb.attach(model, "layer1", 0.5, shallow=shallow, importance=pfb.InverseDensity())
    kept = torch.zeros(20)
    for step in range(60):
        x = torch.randn(20, 3, 8, 8)
        x[:8] = image + 0.01 * torch.randn(8, 3, 8, 8)
        model(x)
        if step >= 20:
            kept[blocker.selection.indices] += 1 / 40
        blocker.step()
    assert kept[:8].max() < 0.1
    assert kept[8:].min() > 0.6
    assert blocker.stats["remembered"] == 60 * 20, "all were remembered, stopped ones too"


def test_a_group_of_equal_samples_never_vanishes():
    torch.manual_seed(0)
    model, equal = zoo.mlp(8, 8, 3), torch.randn(1, 8)
    blocker = pfb.attach(model, "0", 0.5, estimator=pfb.NeighbourMemory(256))
    kept = 0
    for step in range(400):
        model(torch.cat([equal, torch.randn(31, 8)]))
        kept += int(step >= 100 and 0 in blocker.selection.indices)
        blocker.step()
    assert 4 <= kept <= 35, "256 rows hold 8 of them, which counts for 24: about 15 times of 300, and one alone 150"


def test_on_inputs_without_copies_every_sample_is_drawn():
    model = zoo.mlp(8, 8, 3)
    blocker = pfb.attach(model, "0", 0.5, importance=pfb.InverseDensity(), estimator=pfb.NeighbourMemory(512))
    x = torch.randn(32, 8)
    x[:4] *= 3
    counts = torch.zeros(32)
    for _ in range(40):
        model(torch.randn(32, 8))
        blocker.step()
    for _ in range(200):
        counts += torch.zeros(32).index_fill(0, _draw(blocker, x), 1 / 200)
    assert counts.min() > 0.05
    assert counts[:4].mean() < 0.75


def _draw(blocker, x):
    return torch.topk(pfb.InverseDensity()(x, blocker.estimator), len(x) // 2).indices


def test_draws_are_in_proportion_to_the_weights():
    class Known:
        def isolation(self, x):
            return x[:, 0]

    distances = torch.tensor([[1.0], [2.0], [3.0]])
    for gamma, weights in ((1.0, [1.0, 2.0, 3.0]), (2.0, [1.0, 4.0, 9.0]), (0.0, [1.0, 1.0, 1.0])):
        draws = torch.stack([pfb.InverseDensity(gamma)(distances, Known()).argmax() for _ in range(4000)])
        shares, expected = torch.bincount(draws, minlength=3) / 4000, torch.tensor(weights) / sum(weights)
        torch.testing.assert_close(shares, expected, atol=0.04, rtol=0)
    with pytest.raises(ValueError, match="`gamma` must be a finite number >= 0"):
        pfb.InverseDensity(-1)


def test_broken_images_are_kept_and_not_remembered(shallow):
    model = zoo.SmallNet()
    blocker = pfb.attach(model, "layer1", 0.5, shallow=shallow, importance=pfb.InverseDensity())
    for _ in range(2):
        x = torch.randn(20, 3, 8, 8)
        x[[4, 11], 0, 0, 0] = torch.nan
        model(x)
        assert {4, 11} <= set(blocker.selection.indices.tolist())
        blocker.step()
    assert blocker.stats["remembered"] == 36


def test_a_batch_of_one_and_of_none(shallow):
    model = zoo.SmallNet()
    blocker = pfb.attach(model, "layer1", 0.5, shallow=shallow, importance=pfb.InverseDensity())
    for n in (1, 0, 20, 1, 3):
        assert len(model(torch.randn(n, 3, 8, 8))) == len(blocker.selection.indices)
        blocker.step()
    assert blocker.stats["remembered"] == 25


def test_views_go_on_together_and_are_remembered_once(shallow):
    model = zoo.SmallNet()
    blocker = pfb.attach(model, "layer1", 0.5, shallow=shallow, importance=pfb.InverseDensity(), views=2)
    for _ in range(3):
        model(torch.randn(20, 3, 8, 8))
        first, second = blocker.selection.indices.chunk(2)
        assert torch.equal(first + 10, second)
        blocker.step()
    assert blocker.stats["remembered"] == 30


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_repeats_the_decision(shallow, use_reentrant):
    model = zoo.Checkpointed(use_reentrant)
    blocker = pfb.attach(model, "block.0", 0.5, shallow=shallow, importance=pfb.InverseDensity())
    for _ in range(3):
        x = torch.randn(12, 6, requires_grad=use_reentrant)
        with (
            pytest.warns(UserWarning, match="input requires")
            if use_reentrant and blocker.steps == 0
            else contextlib.nullcontext()
        ):
            out = model(x)
        out.square().mean().backward()
        kept = blocker.selection.indices
        gradients = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        with blocker.paused():
            model(x)[kept].square().mean().backward()
        for p, grad in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad, grad)
        model.zero_grad()
        blocker.step()
    assert blocker.stats["remembered"] == 36, "a replay is not another sample"


def test_the_main_input_is_found_in_whatever_order_inputs_come():
    class TakesMask(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

        def forward(self, tokens, mask=None):
            return self.head((self.embed(tokens) * mask[..., None]).mean(1))

    tokens, mask = torch.randint(50, (8, 12)), torch.ones(8, 12)
    for named, judged in ((None, pfb.features.sketch.Sketch()(tokens)), ("mask", mask)):
        model = TakesMask()
        model.main_input_name = named
        blocker = pfb.attach(model, "embed", 0.5, shallow="recompute", importance=pfb.InverseDensity())
        model(mask=mask, tokens=tokens)
        assert torch.equal(blocker.features, judged)


def test_features_with_other_rows_than_the_cut_are_refused():
    class Halved(OfInput):
        def __call__(self, x):
            return x[::2].flatten(1)

    model = zoo.SmallNet()
    blocker = pfb.attach(model, "layer1", 0.5, features=Halved(), shallow="reuse")
    with pytest.raises(ValueError, match="of 4 rows, but the cut's output has 8"):
        model(torch.randn(8, 3, 8, 8))
    blocker.detach()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": "momentun", "shallow": "recompute"}, "Did you mean 'momentum'?"),
        ({"features": "momentum", "shallow": "reuse"}, 'use shallow="recompute"'),
        ({"features": "sketch", "channel_dim": 1}, "leave them out"),
        ({"features": 3}, "or a callable"),
    ],
)
def test_features_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pfb.attach(zoo.SmallNet(), "layer1", **arguments)


def test_the_scoring_pass_runs_on_averages_of_weights_and_statistics():
    model = zoo.SmallNet("batch")
    blocker = pfb.attach(model, "layer1", 0.4, shallow="recompute", features="momentum")
    literal = None
    for x, y in batches(5):
        train(model, blocker, [(x, y)])
        now = {name: v.detach().clone() for name, v in model.state_dict().items() if v.is_floating_point()}
        literal = now if literal is None else {name: 0.99 * literal[name] + 0.01 * v for name, v in now.items()}
    live = {name: v.clone() for name, v in model.state_dict().items()}
    model(x)
    assert all(
        torch.equal(v, live[name])
        for name, v in model.state_dict().items()
        if "layer2" not in name and "running" not in name and "tracked" not in name
    )
    twin = zoo.SmallNet("batch").eval()
    twin.load_state_dict({**live, **{n: v for n, v in literal.items() if not n.startswith(("layer2", "fc"))}})
    expected = twin.layer1(twin.stem(x))
    expected = torch.cat([expected.mean((2, 3)), expected.std((2, 3), correction=0)], 1)
    torch.testing.assert_close(blocker.features, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(blocker.features, pfb.features.cut.mean_and_spread(_live(model, live, x), 1), atol=1e-5)
    assert set(blocker.state_dict()["averages"]) == {n for n in literal if n.startswith(("stem", "layer1"))}


def _live(model, live, x):
    twin = zoo.SmallNet("batch").eval()
    twin.load_state_dict(live)
    return twin.layer1(twin.stem(x)).detach()


def test_the_state_is_of_one_kind_of_features_and_density():
    def made(**arguments):
        return pfb.attach(zoo.SmallNet(), "layer1", shallow="recompute", **arguments)

    state = made().state_dict()
    with pytest.raises(ValueError, match="features='sketch', this blocker has features='cut'"):
        made(importance=pfb.RareFirst()).load_state_dict(state)
    other = made(importance=pfb.RareFirst(), features="sketch")
    with pytest.raises(ValueError, match="density state lacks"):
        other.load_state_dict(state)


def test_averages_of_another_model_are_refused_before_anything_is_changed():
    model, other = zoo.SmallNet("batch"), zoo.SmallNet("group")
    settings = {"shallow": "recompute", "features": "momentum"}
    first, second = (pfb.attach(m, "layer1", 0.4, **settings) for m in (model, other))
    train(model, first, batches(2))
    with pytest.raises(ValueError, match="averaged weights are another model's: 'layer1.1.running_mean' has shape"):
        second.load_state_dict(first.state_dict())
    assert not second.estimator.ready
    assert second.steps == 0
    pfb.attach(zoo.SmallNet("batch"), "layer1", 0.4, **settings).load_state_dict(first.state_dict())


def test_features_name_themselves():
    names = [
        pfb.attach(zoo.SmallNet(), "layer1", shallow="recompute", features=f).state_dict()["features"] for f in FEATURES
    ]
    assert names == ["cut", "cut-spread", "sketch", "momentum", "callable", "callable"]


def test_gaps_that_the_model_fills_itself_are_told_where_they_are_many(shallow):
    """Broken samples are kept, so that many of them crowd out the whole ones."""
    x = torch.randn(40, 6)
    x[:5, 2] = float("nan")
    model = zoo.mlp(6, 8, 3)
    with (
        pfb.attach(model, "1", 0.5, shallow=shallow),
        pytest.warns(UserWarning, match=r"5 of 40 samples.*pass `features=`"),
    ):
        model(x.clone())


def test_in_order_of_the_clips_copies_stand_out_less():
    """A limit: the share is that of each batch."""
    torch.manual_seed(0)
    x = torch.randn(1024, 20)
    x[:256] = x[:8].repeat_interleave(32, 0)
    copies_kept = []
    for order in (torch.randperm(1024), torch.arange(1024)):
        model, kept = zoo.mlp(20, 8, 3), torch.zeros(1024)
        with pfb.attach(model, "1", 0.4, estimator=pfb.NeighbourMemory(256)) as blocker:
            for rows in order.repeat(3).split(64):
                model(x[rows])
                kept[rows[blocker.selection.indices]] += 1 / 3
                blocker.step()
        copies_kept.append(float(kept[:256].mean()))
    shuffled, in_order = copies_kept
    assert shuffled < 0.3
    assert in_order > shuffled + 0.2
