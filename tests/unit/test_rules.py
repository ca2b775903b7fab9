"""What a rule says it reads."""

import pytest
import torch

import pfb
from pfb.selection.rules import reads_of


def test_of_a_function_its_arguments_tell():
    assert reads_of(lambda features: features[:, 0]) == "features"
    assert reads_of(lambda features, density: features[:, 0]) == "density"
    assert reads_of(lambda *both: both[0][:, 0]) == "density"
    assert reads_of(torch.sum) == "features", "no signature to read"


def test_an_object_says_it_itself():
    class Rule:
        reads = "nothing"

        def __call__(self, features, density): ...

    assert reads_of(Rule()) == reads_of(pfb.Uniform()) == "nothing"
    assert reads_of(pfb.RareFirst()) == "density"
    Rule.reads = "labels"
    with pytest.raises(ValueError, match=r"\"density\", \"features\" or \"nothing\" \(got 'labels'\)"):
        pfb.attach(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), "0", rule=Rule())
