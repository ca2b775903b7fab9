"""Samples judged by what is shown beside the batch."""

import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

import pfb
from pfb.features.sketch import Sketch
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


def test_what_was_shown_is_used_up(shallow):
    """By a forward that prunes nothing, too: it was meant for that batch."""
    model, originals, blocker = attached(shallow, prune=pfb.window(0.4, start=0.5), total_steps=2)
    originals.show(images())
    model(images())
    assert blocker.selection is None
    blocker.step()
    with pytest.raises(RuntimeError, match="shown nothing for this batch"):
        model(images())
    originals.show(stored := images())
    with blocker.paused():
        model(images())
    model(images())
    torch.testing.assert_close(blocker.features, Sketch()(stored), rtol=0, atol=0)


def test_what_is_shown_may_change_afterwards():
    """A loop may augment in place."""
    model = zoo.mlp(6, 16, 3)
    originals = pfb.Originals()
    blocker = pfb.attach(model, "0", features=originals)
    x = torch.randn(N, 6)
    before = x.clone()
    originals.show(x)
    model(x.add_(1))
    torch.testing.assert_close(blocker.features, before)


def test_a_loader_that_runs_ahead_is_told():
    model, originals, _ = attached()
    originals.show(images())
    with pytest.warns(UserWarning, match=r"show\(\) was called twice.*show them in the loop"):
        originals.show(images())
    originals.show(images())  # told once
    model(images())
    originals.show(images())
    with torch.no_grad():
        model(images())


@pytest.mark.parametrize("paused", [True, False])
def test_a_loop_that_shows_every_batch_hears_nothing(shallow, paused):
    model, originals, blocker = attached(shallow, prune=0.4 if paused else 0.0)
    for _ in range(3):
        originals.show(images())
        if paused:
            with blocker.paused():
                model(images())
        else:
            model(images())


def test_inside_decide_once_only_the_first_forward_is_judged(shallow):
    model, originals, blocker = attached(shallow)
    originals.show(images())
    with blocker.decide_once():
        model(images())
        first = blocker.selection.indices
        model(images())
        assert torch.equal(first, blocker.selection.indices)
        with pytest.raises(ValueError, match="began with a batch of 20 rows and now got 19"):
            model(images(N - 1))


def test_rows_are_samples_wherever_the_model_has_them():
    model = nn.GRU(5, 8)  # [T, N, F]
    originals = pfb.Originals()
    whole = nn.Sequential(model)
    blocker = pfb.attach(whole, "0", features=originals, batch_dim=1, shallow=pfb.Recompute(batch_dim=1))
    originals.show(torch.randn(8, 5))
    whole(torch.randn(20, 8, 5))
    assert len(blocker.selection.indices) == 5
    originals.show(torch.randn(20, 5))
    with pytest.raises(ValueError, match="features of 20 rows, but the model's batch has 8"):
        whole(torch.randn(20, 8, 5))


class OfList(nn.Module):
    """Takes images of different sizes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return torch.stack([self.body(image).mean((1, 2)) for image in images])


def test_a_list_has_as_many_samples_as_images():
    model, originals = OfList(), pfb.Originals()
    blocker = pfb.attach(model, "body", features=originals)
    batch = [torch.randn(3, 8 + i, 9) for i in range(10)]
    originals.show(torch.randn(10, 3, 8, 8))
    assert model(batch).shape == (6, 4)
    assert len(blocker.selection.indices) == 6
    originals.show(torch.randn(3, 3, 8, 8))
    with pytest.raises(ValueError, match="features of 3 rows, but the model's batch has 10"):
        model([image.clone() for image in batch])


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
        gradients.append(next(model.parameters()).grad)
    torch.testing.assert_close(*gradients)


def test_two_forwards_of_a_checkpointed_model_before_one_backward(shallow):
    gradients = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        model, originals, blocker = attached(shallow)
        loss = torch.zeros(())
        for _ in range(2):
            originals.show(images())
            x = images()
            output = checkpoint(model, x, use_reentrant=False) if wrapped else model(x)
            loss = loss + nn.functional.cross_entropy(output, blocker.select(torch.arange(N) % 5))
        originals.show(images())  # of the next step
        loss.backward()
        gradients.append(next(model.parameters()).grad)
    torch.testing.assert_close(*gradients)


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
    for wrong in (3, nn.Identity):
        with pytest.raises(TypeError, match=r"must be a callable to features \[N, D\] \(got"):
            pfb.Originals(wrong)


@pytest.mark.parametrize(
    ("returned", "got"), [(None, "NoneType"), (torch.zeros(3), r"\(3,\)"), (torch.zeros(3).numpy(), "ndarray")]
)
def test_features_of_another_form_are_refused_when_they_are_shown(returned, got):
    with pytest.raises(ValueError, match=rf"must return a tensor \[N, D\] \(got {got}"):
        pfb.Originals(lambda x: returned).show(images())


def test_the_class_itself_is_no_features():
    with pytest.raises(
        ValueError, match=r"a callable to features \[N, D\] \(got <class 'pfb.features.originals.Originals'>"
    ):
        pfb.attach(zoo.SmallNet(), "layer1", features=pfb.Originals)


def test_nobody_can_be_advised_by_what_is_not_shown():
    with pytest.raises(ValueError, match="pass a loader that does not augment"):
        pfb.advise(zoo.SmallNet(), [images()], features=pfb.Originals())


def test_what_a_sketch_does_not_know_is_refused_when_it_is_shown():
    with pytest.raises(TypeError, match=r"knows images.*pfb.Originals\(lambda x: ...\)"):
        pfb.Originals().show(["a", "b"])
