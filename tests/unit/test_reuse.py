"""The wiring that keeps the shallow pass: what it refuses beside the cut's own input."""

import pytest
import torch

import pfb
from tests import zoo


def test_reuse_fails_loudly_where_an_input_bypasses_the_cut():
    model = zoo.Bypass()
    with pfb.attach(model, "shallow", 0.9, shallow=pfb.Reuse(shared=("gain",))):
        with pytest.raises(RuntimeError, match="size") as failed:
            model(torch.randn(10, 6), gain=torch.rand(10))
        assert 'shallow="recompute"' in failed.value.__notes__[0], "the way out"
        with pytest.raises(TypeError) as failed:
            model(torch.randn(10, 6), gian=None)
        assert not hasattr(failed.value, "__notes__"), "an error of another origin is left alone"


def test_other_hooks_on_the_cut_see_what_goes_on():
    model, seen = zoo.mlp(6, 8, 3), []
    model[0].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    with pfb.attach(model, "0", 0.5):
        model(torch.randn(10, 6))
    assert seen == [5]


def test_channels_last_is_kept_through_the_cut():
    model = zoo.SmallNet().to(memory_format=torch.channels_last)
    formats = []
    model.layer2.register_forward_pre_hook(
        lambda m, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    with pfb.attach(model, "layer1", 0.5):
        model(torch.randn(8, 3, 8, 8).to(memory_format=torch.channels_last))
    assert formats == [True]
