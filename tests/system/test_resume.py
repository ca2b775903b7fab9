"""A run that is stopped and resumed ends bit-identical to one that was not."""

import io

import pytest
import torch
from torch import nn

import pfb
from tests import zoo


class Run:
    def __init__(self, shallow, rule=None, seed=0, **arguments):
        torch.manual_seed(seed)
        self.model = zoo.SmallNet("batch")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.blocker = pfb.attach(
            self.model,
            "layer1",
            pfb.window(0.4, start=0.1, stop=0.9, ramp=(0.2,)),
            total_steps=12,
            shallow=shallow,
            rule=importance,
            **{"estimator": pfb.MovingCenters(16, 0.1), **arguments},
        )

    def micro_batch(self):
        x, y = torch.randn(20, 3, 8, 8), torch.randint(5, (20,))
        nn.functional.cross_entropy(self.model(x), self.blocker.select(y)).backward()

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.blocker.step()

    def run(self, steps):
        for _ in range(steps):
            self.micro_batch()
            self.step()

    def save(self):
        gradients = [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]
        buffer = io.BytesIO()
        objects = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "blocker")}
        torch.save({**objects, "rng": torch.get_rng_state(), "gradients": gradients}, buffer)
        return buffer.getvalue()

    def load(self, saved):
        state = torch.load(io.BytesIO(saved), weights_only=True)
        for name in ("model", "optimizer", "blocker"):
            getattr(self, name).load_state_dict(state[name])
        for p, grad in zip(self.model.parameters(), state["gradients"], strict=True):
            p.grad = grad
        torch.set_rng_state(state["rng"])


@pytest.mark.parametrize("importance", [None, pfb.Uniform()], ids=["rare", "uniform"])
@pytest.mark.parametrize("stop_at", [0, 1, 2, 6, 11])
def test_resume_is_bit_identical(shallow, importance, stop_at):
    straight = Run(shallow, importance)
    straight.run(12)

    first = Run(shallow, importance)
    first.run(stop_at)
    saved = first.save()
    second = Run(shallow, importance, seed=99)
    second.load(saved)
    second.run(12 - stop_at)

    for (name, a), b in zip(straight.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    if importance is None:
        assert torch.equal(straight.blocker.density.centers, second.blocker.density.centers)
    assert straight.blocker.steps == second.blocker.steps == 12


def test_resume_between_micro_batches(shallow):
    def accumulated(run, steps):
        for _ in range(steps):
            run.micro_batch()
            run.micro_batch()
            run.step()

    straight = Run(shallow)
    accumulated(straight, 6)

    first = Run(shallow)
    accumulated(first, 3)
    first.micro_batch()
    saved = first.save()
    second = Run(shallow, seed=99)
    second.load(saved)
    second.micro_batch()
    second.step()
    accumulated(second, 2)
    for a, b in zip(straight.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_the_blockers_state_the_end_differs(shallow):
    """The comparison above can fail: this is the trap of a density that is missing from the
    checkpoint.
    """
    straight = Run(shallow)
    straight.run(12)
    first = Run(shallow)
    first.run(6)
    saved = first.save()
    second = Run(shallow)
    second.blocker.load_state_dict = lambda state: None
    second.load(saved)
    second.run(6)
    assert not torch.equal(straight.model.fc.weight, second.model.fc.weight)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.clear(), "not a state of pfb.Blocker"),
        (lambda s: s.update(version=99), "version 99"),
        (lambda s: s.update(cut="layer2"), "cut='layer2'"),
        (lambda s: s.update(shallow="other"), "shallow='other'"),
        (lambda s: s.update(step="4"), "`step` must be a whole number >= 0 .got '4'"),
        (lambda s: s.update(step=-1), "`step` must be a whole number"),
        (lambda s: s.update(density=None), "it is a NoneType"),
        (lambda s: s["estimator"].update(pending=None), "must be tensors all, or None all"),
        (lambda s: s["estimator"].pop("counts"), r"lacks \['counts'\]"),
        (lambda s: s["estimator"].update(n_centers=7), "n_centers=7"),
        (lambda s: s["estimator"].update(mean=torch.zeros(3)), "do not belong together"),
    ],
)
def test_a_foreign_or_damaged_state_changes_nothing(shallow, spoil, message):
    run = Run(shallow)
    run.run(4)
    state = torch.load(io.BytesIO(run.save()), weights_only=True)["blocker"]
    before = run.blocker.density.centers.clone()
    spoil(state)
    with pytest.raises(ValueError, match=message):
        run.blocker.load_state_dict(state)
    assert torch.equal(run.blocker.density.centers, before)
    assert run.blocker.steps == 4


def test_a_state_that_is_no_dict(shallow):
    with pytest.raises(ValueError, match="list"):
        Run(shallow).blocker.load_state_dict([])


@pytest.mark.parametrize("features", ["sketch", "momentum"])
@pytest.mark.parametrize("stop_at", [1, 6])
def test_memory_and_averages_resume_bit_identically(features, stop_at):
    def made(seed=0):
        return Run("recompute", pfb.InverseDensity(), seed, features=features, density=pfb.NeighbourMemory(64))

    straight = made()
    straight.run(12)
    first = made()
    first.run(stop_at)
    saved = first.save()
    second = made(seed=99)
    second.load(saved)
    second.run(12 - stop_at)
    for (name, a), b in zip(straight.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    ours, theirs = straight.blocker.state_dict(), second.blocker.state_dict()
    for part in ("estimator", "averages"):
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(theirs[part][k])) for k, v in ours[part].items())
    assert bool(ours["averages"]) == (features == "momentum")
