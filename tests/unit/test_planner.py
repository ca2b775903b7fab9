"""The plan: real pruned steps of both tools; the model and random numbers stay as they were."""

import copy

import pytest
import torch
from torch import nn

import pfb
from pfb.adviser import step_time
from tests import zoo


def test_a_plan_of_a_convolutional_net():
    model = zoo.SmallNet("batch").eval()
    before, numbers = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = pfb.plan(model, torch.randn(32, 3, 16, 16), prune=0.5, cut="layer1", repeats=3)
    torch.set_rng_state(numbers)
    assert (found.batch_size, found.kept, found.prune) == (32, 16, 0.5)
    assert [(step.name, step.cut) for step in found.steps] == [("ideal", None), ("copies", None), ("paper", "layer1")]
    ideal, copies, paper = found.steps
    assert ideal.saved_bytes == copies.saved_bytes < min(paper.saved_bytes, found.full_bytes)
    assert found.full_seconds > 0
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    printed = str(found)
    assert "paper, cut layer1" in printed
    assert 'pfb.attach(model, cut="layer1", prune=0.5)' in printed
    assert "pfb.prune_batches(loader, prune=0.5)" in printed


def test_random_numbers_are_drawn_as_if_nothing_had_happened():
    model, x = nn.Sequential(zoo.mlp(8, 8, 4), nn.Dropout()), torch.randn(10, 8)
    state = torch.get_rng_state()
    pfb.plan(model, x, cut="0.0", repeats=3)
    assert torch.equal(state, torch.get_rng_state())


def test_all_candidate_cuts_are_measured_and_steps_come_in_pairs_with_full_ones(monkeypatch):
    def made_up(steps, device, repeats, **options):
        for step in steps.values():
            step()
        return {name: [{"full": 10.0, "ideal": 5.0, "copies": 5.2}.get(name, 7.0)] * repeats for name in steps}

    monkeypatch.setattr(step_time, "interleaved_seconds", made_up)
    rounds = []
    found = pfb.plan(zoo.mlp(8, 8, 8, 4), torch.randn(10, 8), prune=0.5, on_round=lambda: rounds.append(0))
    assert [step.ratio.median for step in found.steps] == pytest.approx([0.5, 0.52] + [0.7] * (len(found.steps) - 2))
    assert len(rounds) == len(found.steps) > 3
    assert found.full_seconds == 10.0


def test_an_input_that_no_sketch_is_known_of_has_the_papers_tool():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(torch.view_as_real(x).flatten(1)))

    found = pfb.plan(Complex(), torch.randn(12, 2, dtype=torch.complex64), repeats=3)
    assert {step.name for step in found.steps} == {"ideal", "paper"}


def test_a_cut_that_something_bypasses_is_refused_and_said():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.c(self.b(self.a(x)) + x)

    found = pfb.plan(Skip(), torch.randn(12, 4), repeats=3)
    assert {cut for cut, _ in found.refused} == {"a", "b"}
    assert "no cut at a: " in str(found)


def test_inputs_as_keywords():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x, bias):
            return {"out": self.b(self.a(x)) + bias}

    found = pfb.plan(TwoInputs(), {"x": torch.randn(12, 4), "bias": torch.tensor(0.1)}, cut="a", repeats=3)
    assert [step.name for step in found.steps] == ["ideal", "copies", "paper"]


def test_errors():
    with pytest.raises(ValueError, match="batch of tensors"):
        pfb.plan(zoo.mlp(4, 4, 2), {"x": 3})
    with pytest.raises(ValueError, match="`cut` must name a layer"):
        pfb.plan(zoo.mlp(4, 4, 2), torch.randn(8, 4), cut="nowhere")
    with pytest.raises(ValueError, match="`prune`"):
        pfb.plan(zoo.mlp(4, 4, 2), torch.randn(8, 4), prune=1.0)


def test_a_plan_of_nothing_left_out_warns_of_nothing():
    pfb.plan(zoo.mlp(8, 8, 8, 4), torch.randn(10, 8), prune=0.0, cut="0", repeats=3)
