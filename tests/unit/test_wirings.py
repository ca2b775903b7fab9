"""Both wirings are exact: the same samples go on, with the gradients of a model that never saw the
others.
"""

import copy

import torch
from torch import nn

import pfb
from tests import reference, zoo


def batch(n=20):
    return torch.randn(n, 3, 8, 8, dtype=torch.float64), torch.randint(5, (n,))


def trained_steps(steps, prune=0.4, model_seed=0, cut="layer1"):
    """Train a model without batch statistics; returns it, each step's indices and the last
    gradients.
    """
    torch.manual_seed(model_seed)
    model = zoo.SmallNet().double()
    blocker = pfb.attach(model, cut, prune, density=pfb.MovingCenters(8, 0.1))
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


def test_gradients_equal_those_of_the_kept_samples_alone():
    model = zoo.SmallNet().double()
    plain = copy.deepcopy(model)
    blocker = pfb.attach(model, "layer1", 0.4, density=pfb.MovingCenters(8))
    for _ in range(4):
        x, y = batch()
        model.zero_grad()
        nn.functional.cross_entropy(model(x), blocker.select(y)).backward()
        expected = reference.gradients_of_kept(plain, x, y, blocker.selection.indices)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-12)
        blocker.step()
    assert blocker.density.ready


def test_the_selection_is_the_rarest_by_the_literal_density():
    """End to end: features, density, importance and choice against the reference, without the
    random term.
    """
    model = zoo.SmallNet()
    estimator = pfb.MovingCenters(8, 0.1)
    blocker = pfb.attach(model, "layer1", 0.4, rule=pfb.RareFirst(0.0), density=estimator)
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


def test_names_parameters_and_state_dict_stay():
    model = zoo.SmallNet()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    with pfb.attach(model, "layer1", 0.4) as blocker:
        model(torch.randn(8, 3, 8, 8)).sum().backward()
        blocker.step()
        assert list(model.state_dict()) == list(before)
        assert [name for name, _ in model.named_modules()] == modules
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_frozen_shallow_part():
    """Shallow layers in evaluation mode and without gradients are still cut at: the deep part is
    what costs.
    """
    model = zoo.SmallNet("batch")
    model.stem.requires_grad_(False)
    model.layer1.requires_grad_(False).eval()
    with pfb.attach(model, "layer1", 0.5) as blocker:
        out = model(torch.randn(10, 3, 8, 8))
        assert out.shape[0] == 5
        out.sum().backward()
        blocker.step()
    assert not model.layer1.training
