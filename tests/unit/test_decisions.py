"""Whose decision is taken: one batch that is run several times, gradients by the input, threads and
interrupts.
"""

import threading

import pytest
import torch
from torch import nn

import pfb
from tests import zoo
from tests.unit.test_gate import X, attached, forwards


class TestOneBatchTwice:
    """SAM, LBFGS, the two sides of a siamese net: each run would decide anew."""

    def test_it_is_told_once(self):
        model, _blocker = attached()
        with pytest.warns(UserWarning, match="one batch was run twice.*decide_once") as told:
            forwards(model, 3)
        assert len(told) == 1

    def test_a_copy_of_the_batch_is_not_known_again(self):
        """As when each call moves it to the device anew; comparing values would wait for them."""
        model, _blocker = attached()
        model(X)
        model(X.clone())

    def test_all_runs_inside_decide_once_take_the_first_decision(self):
        model, blocker = attached(rule=pfb.Uniform())
        chosen = []
        for _ in range(3):
            with blocker.decide_once():
                for _ in range(3):
                    assert len(model(X)) == 6
                    chosen.append(tuple(blocker.selection.indices.tolist()))
            blocker.step()
        assert [len(set(chosen[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]
        assert len(set(chosen)) > 1, "the next step decides anew"

    def test_the_density_sees_its_samples_once(self):
        model, blocker = attached(density=pfb.MovingCenters(4, 0.5))
        model(X)
        blocker.step()
        before = int(blocker.density.counts.sum())
        with blocker.decide_once():
            model(X)
            model(X)
        blocker.step()
        assert int(blocker.density.counts.sum()) == before + 6

    def test_another_number_of_rows_is_refused(self):
        model, blocker = attached()
        with blocker.decide_once():
            model(X)
            with pytest.raises(ValueError, match="began with a batch of 10 rows and now got 8"):
                model(X[:8])
        assert len(model(X[:8].clone())) == 5, "outside it all is as before"

    def test_the_two_sides_of_a_siamese_net_keep_the_same_pairs(self):
        model, blocker = attached()
        with blocker.decide_once():
            model(X)
            first = blocker.selection.indices
            model(X.flip(1))
        assert torch.equal(first, blocker.selection.indices)

    def test_sharpness_aware_steps(self):
        """Both passes of SAM see the same samples, and all are those of a plain model."""
        model, blocker = attached()
        y = torch.randint(3, (10,))
        with blocker.decide_once():
            first = nn.functional.cross_entropy(model(X), blocker.select(y))
            (first * 1).backward()
            moves = [0.1 * p.grad for p in model.parameters()]
            with torch.no_grad():
                for p, move in zip(model.parameters(), moves, strict=True):
                    p.add_(move)
            second = nn.functional.cross_entropy(model(X), blocker.select(y))
        kept = blocker.selection.indices
        with torch.no_grad():
            expected = nn.functional.cross_entropy(model.eval()(X[kept]), y[kept])
        torch.testing.assert_close(second, expected)
        assert second.item() > first.item(), "the weights did move in between"

    def test_a_line_search_sees_one_function(self):
        torch.manual_seed(0)
        model = zoo.mlp(6, 8, 1).double()
        blocker = pfb.attach(model, "1", 0.4, rule=pfb.Uniform())
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=10, line_search_fn="strong_wolfe")
        x = torch.randn(40, 6).double()
        y, losses = x[:, :1].sin(), []

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), blocker.select(y))
            loss.backward()
            losses.append(loss.item())
            return loss

        with blocker.decide_once():
            optimizer.step(closure)
        blocker.step()
        assert losses[-1] < 0.9 * losses[0]


def penalty(critic, x):
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (gradient.norm(2, dim=1) - 1).square()


class TestGradientsByTheInput:
    """Those of stopped samples are zero, so that penalties and attacks would count them in."""

    def test_a_leaf_that_wants_gradients_is_told_once(self):
        model, _blocker = attached()
        x = torch.randn(10, 6, requires_grad=True)
        with pytest.warns(UserWarning, match=r"those of stopped samples are zero.*blocker.paused\(\)") as told:
            model(x).sum().backward()
        model(torch.randn(10, 6, requires_grad=True))  # a second warning would be an error here
        assert len(told) == 1
        assert ((x.grad == 0).all(1)).sum() == 4

    def test_a_penalty_over_the_kept_samples_is_theirs(self):
        model, blocker = attached()
        x = torch.randn(10, 6, requires_grad=True)
        with pytest.warns(UserWarning, match="stopped samples"):
            values = penalty(model, x)
        kept = blocker.selection.indices
        blocker.detach()
        expected = penalty(model, x.detach()[kept].requires_grad_())
        torch.testing.assert_close(values[kept], expected)

    def test_paused_it_is_that_of_all(self):
        model, blocker = attached()
        x = torch.randn(10, 6, requires_grad=True)
        with blocker.paused():
            values = penalty(model, x)
        assert bool((values != 1).all())


class TestThreads:
    """One model in two threads mixes up whose decision is whose."""

    @staticmethod
    def in_a_thread(work):
        failed = []

        def guarded():
            try:
                work()
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join()
        return failed

    def test_the_others_decision_is_refused(self):
        model, blocker = attached()
        model(X)
        assert not self.in_a_thread(lambda: model(torch.randn(20, 6)))
        with pytest.raises(RuntimeError, match="two threads within one step.*a blocker of its own"):
            blocker.select(torch.arange(10))

    def test_a_pool_that_runs_each_step_in_another_thread_is_fine(self):
        model, blocker = attached()

        def step():
            assert len(model(torch.randn(10, 6))) == len(blocker.select(torch.arange(10))) == 6
            blocker.step()

        model(torch.randn(10, 6))  # a first try, without a step
        for _ in range(2):
            assert not self.in_a_thread(step)

    def test_a_forward_in_another_thread_may_be_selected_for_here(self):
        model, blocker = attached()
        assert not self.in_a_thread(lambda: model(X))
        assert len(blocker.select(torch.arange(10))) == 6


class Interrupts(nn.Module):
    """Ctrl-C in a notebook: PyTorch runs no hooks for it, so the model is never left."""

    def forward(self, x):
        raise KeyboardInterrupt


class TestInterrupts:
    def interrupted(self, place=2):
        model = zoo.mlp(6, 8, 3)
        blocker = pfb.attach(model, "1", 0.5)
        whole, model[place] = model[place], Interrupts()
        with pytest.raises(KeyboardInterrupt):
            model(X)
        model[place] = whole
        return model, blocker

    @pytest.mark.parametrize("place", [0, 2])
    def test_evaluations_and_pauses_are_whole(self, place):
        model, blocker = self.interrupted(place)
        assert len(model.eval()[1](X)) == 10
        model, blocker = self.interrupted(place)
        with blocker.paused():
            assert len(model[1](X)) == 10
        with torch.no_grad():
            assert len(model(X)) == 10

    def test_the_cut_on_its_own_is_not_free_until_the_model_is_called(self):
        hidden = torch.randn(10, 8)
        for place in (0, 2):
            model, _blocker = self.interrupted(place)
            if place == 0:  # before the cut
                assert len(model[1](hidden)) == 5
            else:
                with pytest.raises(RuntimeError, match="call the model itself rather than its parts"):
                    model[1](hidden)
            assert len(model(X.clone())) == 5
            assert len(model[1](hidden)) == 10
