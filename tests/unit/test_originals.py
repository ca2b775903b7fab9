"""Samples judged by what is shown beside the batch."""

import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

import pfb
from pfb.sketch import Sketch
from tests import zoo

N = 20


def attached(shallow="recompute", model=None, prune=0.4, **settings):
    model = zoo.SmallNet() if model is None else model
    originals = pfb.Originals()
    blocker = pfb.attach(
        model, "layer1", prune, shallow=shallow, features=originals, estimator=pfb.NeighbourMemory(64), **settings
    )
    return model, originals, blocker


def images(n=N):
    return torch.randn(n, 3, 8, 8)


def test_samples_are_judged_by_the_originals_and_trained_on_as_they_are_given(shallow):
    model, originals, blocker = attached(shallow)
    stored, given = images(), images()
    originals.show(stored)
    output = model(given)
    kept = blocker.selection.indices
    torch.testing.assert_close(blocker.features, Sketch()(stored), rtol=0, atol=0)
    if shallow == "recompute":
        with blocker.paused():
            torch.testing.assert_close(output, model(given[kept]))
    assert len(output) == 12


def test_copies_that_augmentation_hides_are_seen():
    model, originals, blocker = attached()
    stored = images()
    stored[10:] = stored[:1]  # half are copies of one
    kept = []
    for _ in range(8):
        originals.show(stored)
        nn.functional.cross_entropy(model(images()), blocker.select(torch.arange(N) % 5)).backward()
        blocker.step()
        stored[1:10] = images(9)
        kept.append((blocker.selection.indices[:, None] == torch.arange(10, N)).sum())
    assert torch.stack(kept)[2:].float().mean() < 4  # of 12; by chance 6


def test_every_batch_needs_its_own(shallow):
    model, originals, blocker = attached(shallow)
    with pytest.raises(RuntimeError, match=r"shown nothing for this batch. Call `originals.show"):
        model(images())
    originals.show(images())
    model(images())
    with pytest.raises(RuntimeError, match="shown nothing for this batch"):
        model(images())
    originals.show(images())
    model(images())  # as if nothing had happened
    blocker.step()


def test_accumulated_batches_are_shown_one_by_one(shallow):
    model, originals, blocker = attached(shallow)
    for _ in range(2):
        originals.show(stored := images())
        model(images())
        torch.testing.assert_close(blocker.features, Sketch()(stored), rtol=0, atol=0)
    blocker.step()
    assert blocker.estimator.summary() == {"remembered": 2 * N}


class Labelled(zoo.SmallNet):
    """Takes its labels into its forward, where nobody selects them."""

    def forward(self, x, *labels):
        return nn.functional.cross_entropy(super().forward(x), *labels)


@pytest.mark.parametrize("rows", [N - 1, N + 1, 1])
def test_originals_of_another_batch_are_refused(shallow, rows):
    model, originals, _ = attached(shallow)
    originals.show(images(rows))
    with pytest.raises(ValueError, match=rf"judged by features of {rows} rows"):
        model(images())
    labelled, originals, _ = attached(model=Labelled())
    originals.show(images(rows))
    with pytest.raises(ValueError, match=rf"features of {rows} rows, but the model's batch has {N}"):
        labelled(images(), torch.zeros(N, dtype=torch.int64))


def test_nothing_is_asked_of_forwards_that_prune_nothing(shallow):
    model, _, blocker = attached(shallow)
    with blocker.paused():
        model(images())
    with torch.no_grad():
        model(images())
    model.eval()(images())
    model, _, blocker = attached(shallow, prune=0.0)
    model(images())


def test_one_batch_run_twice_is_shown_once(shallow):
    model, originals, blocker = attached(shallow)
    originals.show(images())
    x = images()
    with blocker.decide_once():
        model(x)
        first = blocker.selection.indices
        model(x)
    assert torch.equal(first, blocker.selection.indices)


def test_checkpointed_layers_take_the_decision_of_their_forward(shallow):
    model, originals, blocker = attached(shallow)
    layer = model.layer1.forward
    model.layer1.forward = lambda x: checkpoint(layer, x, use_reentrant=False)
    originals.show(images())
    nn.functional.cross_entropy(model(images()), blocker.select(torch.arange(N) % 5)).backward()


def test_a_checkpointed_model_trains_as_without(shallow):
    gradients = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        model, originals, blocker = attached(shallow)
        originals.show(images())
        x = images()
        output = checkpoint(model, x, use_reentrant=False) if wrapped else model(x)
        nn.functional.cross_entropy(output, blocker.select(torch.arange(N) % 5)).backward()
        gradients.append(model.conv1.weight.grad if hasattr(model, "conv1") else next(model.parameters()).grad)
    torch.testing.assert_close(*gradients)


def test_reentrant_checkpointing_of_the_model_is_an_error():
    model, originals, blocker = attached()
    originals.show(images())
    output = checkpoint(model, images().requires_grad_(), use_reentrant=True)
    with pytest.raises(RuntimeError):
        nn.functional.cross_entropy(output, blocker.select(torch.arange(N) % 5)).backward()


def test_a_compiled_model_decides_as_an_eager_one_and_is_compiled_no_more_later(shallow):
    decided, graphs = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        torch.compiler.reset()
        model, originals, blocker = attached(shallow)
        counter = CompileCounter()
        run = torch.compile(model, backend=counter, fullgraph=True, dynamic=False) if compiled else model
        for _ in range(4):
            originals.show(images())
            nn.functional.cross_entropy(run(images()), blocker.select(torch.arange(N) % 5)).backward()
            blocker.step()
            decided.append(blocker.selection.indices)
            graphs.append(counter.frame_count)
    assert graphs[4] > 0
    assert graphs[5] == graphs[7]  # the first memory is empty, which is another graph
    assert all(torch.equal(a, b) for a, b in zip(decided[:4], decided[4:], strict=True))


def test_a_resumed_run_goes_on_as_if_it_had_not_been_stopped(shallow):
    def steps(model, originals, blocker, n):
        for _ in range(n):
            originals.show(images())
            nn.functional.cross_entropy(model(images()), blocker.select(torch.arange(N) % 5)).backward()
            blocker.step()
        return blocker.selection.indices

    model, originals, blocker = attached(shallow)
    steps(model, originals, blocker, 3)
    saved = io.BytesIO()
    torch.save(blocker.state_dict(), saved)
    state = torch.get_rng_state()
    expected = steps(model, originals, blocker, 2)
    _, others, resumed = attached(shallow, model=(model2 := zoo.SmallNet()))
    model2.load_state_dict(model.state_dict())
    saved.seek(0)
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    torch.set_rng_state(state)
    assert torch.equal(steps(model2, others, resumed, 2), expected)


def test_features_of_ones_own_of_what_is_shown():
    originals = pfb.Originals(lambda names: torch.tensor([[float(len(name))] for name in names]))
    model = zoo.SmallNet()
    blocker = pfb.attach(model, "layer1", features=originals)
    originals.show(["a"] * 10 + ["bbb"] * 10)
    model(images())
    assert blocker.features.flatten().tolist() == [1.0] * 10 + [3.0] * 10
    with pytest.raises(TypeError, match=r"must be a callable to features \[N, D\] \(got 3\)"):
        pfb.Originals(3)


def test_what_a_sketch_does_not_know_is_refused_when_it_is_shown():
    with pytest.raises(TypeError, match="knows images"):
        pfb.Originals().show(["a", "b"])
