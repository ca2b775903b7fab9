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
