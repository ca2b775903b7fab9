"""Nothing is pruned and nobody says so; decisions that are mixed up between threads or runs: what
the gate must tell, and when it must keep silent.
"""

import gc
import warnings
import weakref

import pytest
import torch
from torch import nn

import pfb
from tests import zoo

X = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))


def attached(prune=0.4, **settings):
    model = zoo.mlp(6, 8, 3)
    return model, pfb.attach(model, "1", prune, **settings)


def forwards(call, times):
    for _ in range(times):
        call(X)


def steps(model, blocker, times=1):
    for _ in range(times):
        model(X)
        blocker.step()


class CallsForward(nn.Module):
    """Wrappers of this kind (adapters, for instance) run no hooks of what they wrap."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner.forward(x)


class TestNothingIsPruned:
    """Each way in which a share above 0 stops nothing is told, with its cause."""

    @pytest.mark.parametrize(
        "call",
        [
            lambda model, x: model.forward(x),
            lambda model, x: model[2](model[1](model[0](x))),
            lambda model, x: CallsForward(model)(x),
        ],
        ids=["forward", "parts", "wrapper"],
    )
    def test_the_model_itself_was_not_called(self, call):
        model, blocker = attached()
        assert len(call(model, X)) == 10
        with pytest.raises(RuntimeError, match=r"not within a call of the model.*not its `.forward` or its parts"):
            blocker.step()

    def test_it_is_told_at_the_first_step_and_not_when_the_window_opens(self):
        model, blocker = attached(pfb.window(0.4, start=0.5), total_steps=10)
        model.forward(X)
        with pytest.raises(RuntimeError, match="not within a call of the model"):
            blocker.step()

    def test_without_step_it_is_told_after_two_hundred_forwards(self):
        model, _blocker = attached()
        with pytest.warns(UserWarning, match="200 forwards.*the model itself was not called"):
            forwards(model.forward, 200)

    def test_evaluation_mode(self):
        model, blocker = attached()
        model.eval()
        with pytest.warns(UserWarning, match=r"share of 0.4 pruned nothing.*call model.train\(\)") as told:
            steps(model, blocker, 300)
        assert len(told) == 1

    def test_no_gradients(self):
        model, blocker = attached()
        with torch.no_grad(), pytest.warns(UserWarning, match="pruned nothing, since gradients were disabled"):
            steps(model, blocker)

    def test_a_schedule_in_the_wrong_units_is_over_too_soon(self):
        model, blocker = attached(pfb.window(0.4, stop=0.8), total_steps=2)
        with pytest.warns(UserWarning, match="total_steps=2.*steps, not epochs") as told:
            steps(model, blocker, 5)
        assert len(told) == 1

    def test_a_schedule_without_its_length_is_an_error_in_training_only(self):
        model, blocker = attached(pfb.window(0.4, stop=0.8))
        with torch.no_grad():
            assert len(model.eval()(X)) == 10
        with pytest.raises(RuntimeError, match=r"blocker.total_steps = len\(loader\)"):
            model.train()(X)
        blocker.total_steps = 10
        assert len(model(X)) == 6
        blocker.step()


class TestAllIsWell:
    """Warnings are errors here, so each of these would fail if anything were said."""

    def test_evaluations_between_steps(self):
        model, blocker = attached()
        for _ in range(3):
            model(X)
            blocker.step()
            with torch.no_grad():
                model.eval()(X)
            model.train()
        with torch.no_grad():
            for _ in range(250):
                model(X)

    def test_a_step_that_was_paused(self):
        model, blocker = attached()
        with blocker.paused():
            model(X)
        blocker.step()

    def test_a_share_of_zero_on_parts(self):
        model, blocker = attached(0.0)
        model.forward(X)
        blocker.step()

    def test_parts_called_beside_the_model(self):
        model, blocker = attached()
        for _ in range(250):
            x = torch.randn_like(X)
            blocker.select(model(x).detach()[:0].new_zeros(10))
            model[1](model[0](x))
            blocker.step()

    def test_frozen_layers_in_evaluation_mode(self):
        model, blocker = attached()
        model[0].eval().requires_grad_(False)
        for _ in range(3):
            assert len(model(X)) == 6
            blocker.step()

    def test_one_buffer_that_is_filled_anew(self):
        model, blocker = attached()
        buffer = torch.empty(10, 6)
        for _ in range(3):
            model(buffer.copy_(torch.randn(10, 6)))
        blocker.step()

    def test_one_batch_in_two_steps(self):
        model, blocker = attached()
        for _ in range(3):
            model(X)
            blocker.step()


def test_a_step_that_is_never_called_keeps_a_bounded_memory():
    """The density's first rows, the inputs that were seen and the decisions that may be
    replayed.
    """
    model, blocker = attached(density=pfb.MovingCenters(8))
    for _ in range(50):
        model(torch.randn(10, 6))
    assert sum(map(len, blocker.density.state_dict()["seeds"])) <= 8 + 5
    assert len(blocker._gate._inputs) <= 2


def test_a_forward_leaves_no_cycles_that_hold_its_batch():
    """They would keep device memory until Python happens to look for cycles."""
    model, blocker = attached()
    gc.collect()
    gc.disable()
    try:
        x = torch.randn(10, 6)
        gone = weakref.ref(x)
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: None, lambda saved: None):
            model(x)
        blocker.step()
        del x
        assert gone() is None
    finally:
        gc.enable()


def test_stats_after_an_evaluation_are_those_of_training():
    """Everybody logs at the end of an epoch, after evaluating."""
    model, blocker = attached()
    model(X)
    blocker.step()
    with torch.no_grad():
        model.eval()(X)
    assert blocker.stats["pruned_share"] == pytest.approx(0.4)


@pytest.mark.parametrize("size", [(0, 3), (1, 3), (20, 3)])
def test_no_forward_that_passes_whole_is_asked_for_features(size):
    """An evaluation with gradients may be of any shape, and a callable for features may not like
    it.
    """

    def features(output):
        raise AssertionError("not in an evaluation")

    model = nn.Sequential(nn.Identity(), nn.Linear(3, 2))
    with pfb.attach(model, "0", 0.4, features=features):
        model.eval()(torch.zeros(size))
        model(torch.zeros(3)).sum().backward()


def test_an_empty_batch_under_every_rule():
    """A rank without samples takes part with an empty batch."""
    for importance in (pfb.RareFirst(), pfb.Uniform(), lambda features: features.sum(1)):
        for width in ((6,), (3, 8, 8)):
            model = zoo.mlp(6, 8, 3) if width == (6,) else zoo.SmallNet()
            with pfb.attach(model, "1" if width == (6,) else "layer1", rule=importance) as blocker:
                assert len(model(torch.zeros(0, *width))) == 0
                assert len(blocker.select(torch.zeros(0))) == 0
                blocker.step()


def test_decisions_are_those_of_the_unpruned_model_under_warnings_as_errors():
    model, blocker = attached()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            model(torch.randn(64, 6)).sum().backward()
            blocker.step()
