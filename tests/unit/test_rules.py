"""What a rule reads and takes."""

import pytest
import torch

import pfb
from pfb.selection.rules import RuleCall


def test_of_a_function_its_arguments_tell():
    assert RuleCall.of(lambda features: features[:, 0]).reads == "features"
    assert RuleCall.of(lambda features, density: features[:, 0]).reads == "density"
    assert RuleCall.of(lambda *both: both[0][:, 0]).reads == "density"
    assert RuleCall.of(torch.sum).reads == "features", "no signature to read"


def test_an_object_says_it_itself():
    class Rule:
        reads = "nothing"

        def __call__(self, features, density): ...

    assert RuleCall.of(Rule()).reads == RuleCall.of(pfb.Uniform()).reads == "nothing"
    assert RuleCall.of(pfb.RareFirst()).reads == "density"
    Rule.reads = "labels"
    with pytest.raises(ValueError, match=r"\"density\", \"features\" or \"nothing\" \(got 'labels'\)"):
        pfb.attach(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), "0", rule=Rule())


def test_what_it_takes_is_given_by_name():
    def rule(features, own=None, generator=None):
        return features[:, 0] if own is None else own[:, 0] + torch.rand(len(own), generator=generator)

    call = RuleCall.of(rule)
    assert call.reads == "features"
    assert call.takes == {"own", "generator"}
    x = torch.zeros(3, 2)
    a, b = (call(x, pfb.NeighbourMemory(8), x + 1, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(a, b)
    assert (a >= 1).all()


@pytest.mark.parametrize("returned", [torch.zeros(4), torch.zeros(3, 1), 0.5, None])
def test_another_shape_is_refused(returned):
    with pytest.raises(ValueError, match=r"`rule` must return one value per sample, shape \(3,\)"):
        RuleCall.of(lambda features: returned)(torch.zeros(3, 2), pfb.NeighbourMemory(8))


class TestAWrongRule:
    """Whatever a rule of one's own does, the error names it and what it returned."""

    @pytest.mark.parametrize(
        ("rule", "says"),
        [
            (lambda features: features, r"shape \(9,\) \(got \(9, 4\)\)"),
            (lambda features: None, "got NoneType"),
            (lambda features, density: {}["gone"], "KeyError: 'gone'"),
            (lambda: None, "TypeError: .*takes 0 positional arguments"),
            (lambda features: features[:, 0].to(torch.complex64), "RuntimeError|complex|Complex"),
        ],
    )
    @pytest.mark.parametrize("inside", [False, True])
    def test_it_is_named_and_the_cause_kept(self, rule, says, inside):
        named = r"the rule tests\.unit\.test_rules\.TestAWrongRule\.<lambda>, given features \(9, 4\): "
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        pruner = pfb.BatchPruner(0.5, rule=rule, features=lambda x: x)
        if inside:
            pfb.attach(model, "0", 0.5, rule=rule)
        with pytest.raises(ValueError, match=named + f".*({says})") as told:
            (model if inside else pruner)(torch.randn(9, 4))
        assert told.value.__cause__ is not None
        assert pruner.steps == 0

    def test_weights_for_some_of_the_samples(self):
        class Some:
            reads = "features"

            def log_weights(self, features, density):
                return features[:7, 0]

            def __call__(self, features):
                raise AssertionError

        with pytest.raises(ValueError, match=r"Some.*`log_weights` must return one value.*\(9,\) \(got \(7,\)\)"):
            pfb.BatchPruner(0.5, rule=Some())(torch.randn(9, 4))
