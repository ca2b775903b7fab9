"""The plan: what it measures is put together as it says, and the model stays as it was."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import pfb
from pfb.adviser import planner
from pfb.adviser.planner import Prediction
from tests import zoo


def test_a_plan_of_a_convolutional_net():
    model = zoo.SmallNet("batch").eval()
    before = copy.deepcopy(model.state_dict())
    found = pfb.plan(model, torch.randn(32, 3, 16, 16), prune=0.5, cut="layer1", repeats=3)
    assert (found.batch_size, found.kept, found.prune, found.cut) == (32, 16, 0.5, "layer1")
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    best = found.recommended
    assert best.shallow_share > 0
    assert best.recompute.saved_bytes < best.reuse.saved_bytes <= found.full_bytes
    printed = str(found)
    assert 'pfb.attach(model, cut="layer1", prune=0.5), ' in printed or "Nothing would be saved" in printed
    assert found.sketch.saved_bytes == best.recompute.saved_bytes
    assert "* layer1" in printed


def test_predictions_are_put_together_from_the_measured_parts(monkeypatch):
    """Made-up times: a full step 10, the kept half 5; shallow with graph 4 of all and 2 of half,
    scoring 1 in all.
    """

    def made_up(steps, device, repeats, **options):
        values = {"full": 10.0, "kept": 5.0, "sketch": 0.2, "score 0": 1.0, "decide 0": 0.1, "all 0": 4.0, "few 0": 2.0}
        return {name: [values.get(name, 1.0)] * repeats for name in steps}

    monkeypatch.setattr(planner, "interleaved_seconds", made_up)
    found = pfb.plan(zoo.mlp(8, 8, 8, 4), torch.randn(10, 8), prune=0.5, cut="0")
    best = found.recommended
    assert best.shallow_share == pytest.approx(0.4)
    assert best.reuse.step_ratio == pytest.approx((5 + 4 - 2 + 0.1) / 10)
    assert best.recompute.step_ratio == pytest.approx((5 + 1) / 10)
    assert found.sketch.step_ratio == pytest.approx((5 + 0.2) / 10)
    assert found.shallow == "recompute"
    assert found.saved == pytest.approx(0.48)
    assert "48% less time" in str(found)


def test_an_input_that_no_sketch_is_known_of_is_judged_at_the_cut():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(torch.view_as_real(x).flatten(1)))

    found = pfb.plan(Complex(), torch.randn(12, 2, dtype=torch.complex64), repeats=2)
    assert found.sketch is None
    assert 'features="cut"' in str(found) or "Nothing would be saved" in str(found)


def test_inputs_as_keywords_and_without_a_first_stage():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x, scale):
            return {"out": self.c(self.b(self.a(x)).relu() * scale[:, None])}

    found = pfb.plan(TwoInputs(), {"x": torch.randn(12, 4), "scale": torch.rand(12)}, repeats=2)
    assert found.cut == "a"
    assert [c.cut for c in found.candidates] == ["a", "b", "c"]


def test_errors():
    with pytest.raises(ValueError, match="batch of tensors"):
        pfb.plan(zoo.mlp(4, 4, 2), {"x": 3})
    with pytest.raises(ValueError, match="`cut` must name a layer"):
        pfb.plan(zoo.mlp(4, 4, 2), torch.randn(8, 4), cut="nowhere")
    with pytest.raises(ValueError, match="`prune`"):
        pfb.plan(zoo.mlp(4, 4, 2), torch.randn(8, 4), prune=1.0)


def test_what_saves_time_is_recommended():
    found = pfb.plan(zoo.mlp(8, 8, 8, 4), torch.randn(10, 8), prune=0.5, cut="0", repeats=1)
    quick, slow = Prediction(0.6, 0), Prediction(1.3, 0)
    by_cut = dataclasses.replace(
        found,
        sketch=slow,
        candidates=tuple(dataclasses.replace(c, reuse=quick, recompute=slow) for c in found.candidates),
    )
    assert by_cut.saved == pytest.approx(0.4)
    assert 'shallow="reuse", features="cut")' in str(by_cut)
    by_sketch = dataclasses.replace(by_cut, sketch=Prediction(0.7, 0))  # needs no first pass, and sees more
    assert by_sketch.saved == pytest.approx(0.3)
    assert by_sketch.shallow == "recompute"
    both = tuple(dataclasses.replace(c, reuse=slow, recompute=slow) for c in found.candidates)
    assert "Nothing would be saved" in str(dataclasses.replace(by_cut, candidates=both))


def test_a_plan_of_nothing_stopped_warns_of_nothing():
    pfb.plan(zoo.mlp(8, 8, 8, 4), torch.randn(10, 8), prune=0.0, cut="0", repeats=12)
