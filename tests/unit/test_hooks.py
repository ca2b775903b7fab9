"""The blocker where it is not expected: copied, pickled, scripted, traced, exported, run in
backward.
"""

import copy
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

import pfb
from tests import zoo

X = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))


class Owner(nn.Module):
    """Keeps its blocker as an attribute, as a LightningModule may."""

    def __init__(self):
        super().__init__()
        self.net = zoo.mlp(6, 8, 3)
        self.blocker = pfb.attach(self.net, "1", 0.4)

    def forward(self, x):
        return self.net(x)


def saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "save": saved}


@pytest.mark.parametrize("way", WAYS)
class TestCopies:
    def test_a_copy_is_not_pruned_and_says_so(self, way):
        owner = Owner()
        owner(X)
        twin = WAYS[way](owner)
        assert len(twin(X)) == 10
        y = torch.arange(10)
        assert twin.blocker.select(y) is y
        assert "detached" in repr(twin.blocker)
        with pytest.raises(RuntimeError, match=r"or the copy of one \(deepcopy, pickle, a spawned process\)"):
            twin.blocker.step()

    def test_the_original_goes_on(self, way):
        owner = Owner()
        WAYS[way](owner)(X)
        assert len(owner(X)) == 6
        owner.blocker.step()

    def test_a_copy_holds_nothing_of_the_batch(self, way):
        owner = Owner()
        owner(X)
        twin = WAYS[way](owner)
        assert twin.blocker.features is None
        assert twin.blocker.density.state_dict()["seeds"] == []

    def test_a_copy_can_be_attached_to(self, way):
        twin = WAYS[way](Owner())
        twin.blocker = pfb.attach(twin.net, "1", 0.2)
        assert len(twin(X)) == 8


def test_an_owner_can_be_freed():
    import gc

    owner = Owner()
    gone = weakref.ref(owner)
    owner(X).sum().backward()
    del owner
    gc.collect()
    assert gone() is None


def _size_in_another_process(owner, sizes):
    torch.set_num_threads(1)
    sizes.put(len(owner(X)))


def test_a_spawned_process_gets_a_model_that_is_not_pruned():
    context = torch.multiprocessing.get_context("spawn")
    sizes = context.SimpleQueue()
    process = context.Process(target=_size_in_another_process, args=(Owner(), sizes))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert sizes.get() == 10


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
class TestExports:
    def test_scripting_asks_to_detach_first(self):
        model = zoo.mlp(6, 8, 3).eval()
        attached = pfb.attach(model, "1")
        with attached, pytest.raises(AttributeError, match=r"cannot be scripted: call blocker.detach\(\) first"):
            torch.jit.script(model)
        assert torch.equal(torch.jit.script(model)(X), model(X))

    def test_scripting_a_copy_says_when_to_copy(self):
        model = zoo.mlp(6, 8, 3).eval()
        with pfb.attach(model, "1"):
            twin = copy.deepcopy(model)
        with pytest.raises(AttributeError, match=r"cannot be scripted: copy it after detach\(\)"):
            torch.jit.script(twin)

    def test_tracing_an_evaluated_model_gives_the_model(self):
        model = zoo.mlp(6, 8, 3).eval()
        with pfb.attach(model, "1"):
            assert torch.equal(torch.jit.trace(model, X)(X), model(X))

    def test_tracing_one_that_prunes_is_refused(self):
        model = zoo.mlp(6, 8, 3)
        attached = pfb.attach(model, "1")
        with attached, pytest.raises(RuntimeError, match="that prunes cannot be traced"):
            torch.jit.trace(model, X)

    def test_an_exported_model_is_the_plain_one(self):
        model = zoo.mlp(6, 8, 3).eval()
        with pfb.attach(model, "1"):
            exported = torch.export.export(model, (X,)).module()
            torch.testing.assert_close(exported(X), model(X))


class TestForwardsInsideBackward:
    def test_one_without_gradients_is_left_whole_and_leaves_the_selection(self):
        """A hook that looks at the model while gradients come in."""
        model, sizes = zoo.mlp(6, 8, 3), []
        with pfb.attach(model, "1", 0.4) as blocker:

            def look(gradient):
                with torch.no_grad():
                    sizes.append(len(model(torch.randn(10, 6))))

            out = model(X)
            before = blocker.selection
            out.register_hook(look)
            out.sum().backward()
            assert sizes == [10]
            assert torch.equal(blocker.selection.indices, before.indices)
            assert blocker.select(torch.arange(10)).tolist() == before.indices.tolist()
            blocker.step()

    def test_another_forward_with_gradients_is_refused(self):
        """It would be taken for one that activation checkpointing runs again."""
        model = zoo.mlp(6, 8, 3)
        with pfb.attach(model, "1", 0.4):

            def run(gradient):
                with torch.enable_grad():
                    model(100 + torch.randn(10, 6))

            out = model(X)
            out.register_hook(run)
            with pytest.raises(RuntimeError, match="none of those since the last step"):
                out.sum().backward()

    def test_full_backward_hooks_see_the_kept_samples(self):
        model, sizes = zoo.mlp(6, 8, 3), []
        model[2].register_full_backward_hook(lambda module, gin, gout: sizes.append(len(gout[0])))
        with pfb.attach(model, "1", 0.4):
            model(X).sum().backward()
        assert sizes == [6]


def test_an_evaluation_with_gradients_is_whole_and_keeps_the_training_steps_decision():
    """Saliency in evaluation mode between a forward and its backward."""
    model = zoo.mlp(6, 8, 3)
    with pfb.attach(model, "1", 0.4) as blocker:
        loss = nn.functional.cross_entropy(model(X), blocker.select(torch.randint(3, (10,))))
        x = torch.randn(10, 6, requires_grad=True)
        model.eval()(x).sum().backward()
        assert bool((x.grad != 0).all())
        model.train()
        loss.backward()
        blocker.step()
