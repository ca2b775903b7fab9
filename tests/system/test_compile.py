"""torch.compile: one graph per ratio level without breaks, equal to eager."""

import pytest
import torch
from torch import nn

import pfb
from tests import zoo

pytestmark = pytest.mark.filterwarnings("ignore:.*", "default::pytest.PytestUnraisableExceptionWarning")


class Counter:
    """Counts the graphs that a backend gets; without one they run as they are."""

    def __init__(self, backend="eager"):
        self.graphs = 0
        self.compile = torch._dynamo.lookup_backend(backend)

    def __call__(self, graph, inputs):
        self.graphs += 1
        return self.compile(graph, inputs)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batches(steps):
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(20, 3, 8, 8, generator=g), torch.randint(5, (20,), generator=g)) for _ in range(steps)]


def losses(backend, prune=0.4, steps=6, total_steps=None, **arguments):
    """Train some steps; the criterion has no random term, so that compiled random numbers do not
    matter.
    """
    torch.manual_seed(0)
    model = zoo.SmallNet("batch")
    default = {"density": pfb.MovingCenters(8, 0.1), "rule": lambda x, density: -density.log_density(x)}
    blocker = pfb.attach(model, "layer1", prune, total_steps=total_steps, **{**default, **arguments})
    run = model if backend is None else torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result, chosen = [], []
    for x, y in batches(steps):
        loss = nn.functional.cross_entropy(run(x), blocker.select(y))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        chosen.append(None if blocker.selection is None else blocker.selection.indices.tolist())
        blocker.step()
        result.append(loss.detach())
    return torch.stack(result), chosen


def test_a_ramp_compiles_each_level_once_without_graph_breaks_and_equals_eager():
    schedule = {"prune": pfb.window(0.4, start=0.25, stop=0.75, ramp=(0.2,)), "steps": 8, "total_steps": 8}
    expected, expected_choice = losses(None, **schedule)
    counter = Counter("aot_eager")
    compiled, choice = losses(counter, **schedule)
    assert choice == expected_choice
    assert [None if chosen is None else len(chosen) for chosen in choice] == [None] * 2 + [16] * 2 + [12] * 2 + [
        None
    ] * 2
    torch.testing.assert_close(compiled, expected)
    # Full data; 0.2 without centers; 0.2; 0.4.
    assert counter.graphs == 4


@pytest.mark.parametrize("features", ["cut", "cut-spread"])
def test_a_memory_is_equal_to_eager_without_graph_breaks(features):
    def run(backend):
        return losses(
            backend,
            features=features,
            density=pfb.NeighbourMemory(64),
            rule=lambda x, density: -density.near_copies(x),
        )

    expected, expected_choice = run(None)
    counter = Counter()
    compiled, choice = run(counter)
    assert choice == expected_choice
    torch.testing.assert_close(compiled, expected)
    assert counter.graphs == 2, "one while nothing is remembered"


@pytest.mark.parametrize("features", ["cut", lambda output: output.mean((2, 3))])
def test_reduced_features_are_equal_to_eager_without_graph_breaks(features):
    reduced = {"features": features, "feature_dim": 4, "steps": 3}
    compiled, choice = losses(Counter(), **reduced)
    expected, expected_choice = losses(None, **reduced)
    assert choice == expected_choice
    torch.testing.assert_close(compiled, expected)


def test_a_compiled_draw_takes_as_many():
    """Whose random numbers may be others."""
    _, choice = losses("aot_eager", steps=3, rule=pfb.InverseDensity(), density=pfb.NeighbourMemory(64))
    assert [len(chosen) for chosen in choice] == [12] * 3


def test_a_compiled_model_behind_a_pruner_is_one_graph_for_each_share():
    """No hook is in it."""
    torch.manual_seed(0)
    model, counter = zoo.SmallNet("batch"), Counter("aot_eager")
    run = torch.compile(model, fullgraph=True, dynamic=False, backend=counter)
    pruner = pfb.BatchPruner(pfb.window(0.4, start=0.25, stop=0.75), total_steps=8)
    sizes = []
    for x, y in batches(8):
        x, y = pruner(x, y)
        nn.functional.cross_entropy(run(x), y).backward()
        sizes.append(len(x))
    assert sizes == [20] * 2 + [12] * 4 + [20] * 2
    assert counter.graphs == 2


def test_the_scoring_pass_of_a_compiled_model_equals_that_of_a_plain_one():
    def chosen(compiled):
        torch.manual_seed(0)
        model = zoo.SmallNet("batch")
        run = torch.compile(model, dynamic=False, backend="eager") if compiled else model
        pruner = pfb.BatchPruner(0.4, features=pfb.Shallow(run, "layer1"), rule=lambda features: features[:, 0])
        found = []
        for x, y in batches(3):
            x, y = pruner(x, y)
            nn.functional.cross_entropy(run(x), y).backward()
            found.append(pruner.selection.indices.tolist())
        return found

    assert chosen(compiled=True) == chosen(compiled=False)


def test_equal_to_eager_with_inductor():
    def trained(compiled):
        torch.manual_seed(0)
        model = zoo.mlp(6, 16, 3)
        blocker = pfb.attach(model, "0", 0.4, rule=lambda features: features[:, 0])
        run = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model
        for x in torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(1)):
            run(x).square().mean().backward()
            blocker.step()
        return blocker.selection.indices, [p.grad for p in model.parameters()]

    (chosen, gradients), (expected_choice, expected) = trained(True), trained(False)
    assert torch.equal(chosen, expected_choice)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_attaching_after_compiling_is_refused():
    model = zoo.SmallNet()
    with pytest.raises(TypeError, match="first, then torch.compile"):
        pfb.attach(torch.compile(model), "layer1")
    model.compile()
    with pytest.raises(TypeError, match="first, then torch.compile"):
        pfb.attach(model, "layer1")


@pytest.mark.parametrize("told", [False, True])
def test_the_code_of_a_plain_model_compiled_before_is_noticed_and_can_be_avoided(told):
    """PyTorch does not look at hooks when it chooses among the compiled code of one class, unless
    it is told to.
    """
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=not told):
        x = torch.randn(8, 3, 8, 8)
        assert len(torch.compile(zoo.SmallNet(), backend=Counter(), dynamic=False)(x)) == 8
        model = zoo.SmallNet()
        blocker = pfb.attach(model, "layer1", 0.5)
        out = torch.compile(model, backend=Counter(), dynamic=False)(x)
    if told or len(out) == 4:
        assert len(blocker.select(torch.arange(8))) == len(out) == 4
    else:
        with pytest.raises(RuntimeError, match="skip_nnmodule_hook_guards"):
            blocker.select(torch.arange(8))


def test_hooks_that_a_compiled_model_ignores_are_noticed():
    """Attach to the inner model of one compiled and run before: PyTorch may ignore the new hooks
    silently.
    """
    model = zoo.SmallNet()
    compiled = torch.compile(model, backend=Counter())
    compiled(torch.randn(8, 3, 8, 8))
    blocker = pfb.attach(model, "layer1", 0.5)
    out = compiled(torch.randn(8, 3, 8, 8))
    if len(out) == 8:
        with pytest.raises(RuntimeError, match="attach before torch.compile"):
            blocker.select(torch.arange(8))
    else:
        assert len(out) == 4
    blocker.detach()
