"""The gradient noise scale, against what can be worked out by hand."""

import pytest
import torch
from torch import nn

from pfb.adviser.noise_scale import noise_scale, objective


class Shift(nn.Module):
    """Half the squared distance to x: the gradient of a sample is w - x, here -x."""

    def __init__(self, d):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d))

    def forward(self, x):
        return 0.5 * (self.w - x).square().sum(1)


def mean(output, labels):
    return output.mean()


def test_single_samples_give_the_covariance_of_the_gradients():
    x = torch.randn(40, 3) + torch.tensor([2.0, 0.0, -1.0])
    found = noise_scale(Shift(3), [(row[None], None) for row in x], mean)
    trace = x.T.double().cov().trace()
    signal = x.double().mean(0).square().sum() - trace / 40
    assert found.samples == pytest.approx(float(trace / signal))
    assert (found.seen, found.untrained) == (40, None)
    assert found.loss == pytest.approx(float(0.5 * x.square().sum(1).mean()))


@pytest.mark.parametrize("size", [1, 8])
def test_batches_of_any_size_give_the_same_scale(size):
    """tr(Sigma) = 5 * 4 and |G|^2 = 5: four samples."""
    x = 2.0 * torch.randn(400, size, 5) + 1.0
    found = noise_scale(Shift(5), [(batch, None) for batch in x], mean)
    assert found.samples == pytest.approx(4.0, rel=0.2)


def test_equal_samples_have_none_and_opposite_ones_only_noise():
    x = torch.ones(4, 2, 3)
    assert noise_scale(Shift(3), [(batch, None) for batch in x], mean).samples == pytest.approx(0.0, abs=1e-6)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None]
    assert noise_scale(Shift(3), [(batch, None) for batch in signs * x], mean).samples == float("inf")


def test_a_loss_no_better_than_guessing_is_that_of_untrained_weights():
    model = nn.Linear(4, 3)
    batches = [(torch.randn(6, 4), torch.randint(3, (6,))) for _ in range(3)]
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    assert noise_scale(model, batches).untrained
    nn.init.eye_(model.weight)
    learned = [(20 * nn.functional.one_hot(y, 4).float(), y) for _, y in batches]
    assert not noise_scale(model, learned).untrained


def test_which_loss_is_taken():
    logits, y = torch.randn(5, 3, requires_grad=True), torch.tensor([0, 1, 2, 2, 1])
    assert objective(logits, y) == nn.functional.cross_entropy(logits, y)
    carried = {"loss": logits.sum(), "logits": logits}
    assert objective(carried, y) == logits.sum()
    assert objective(logits, y, lambda output, labels: output.mean()) == logits.mean()
    assert objective(logits, torch.tensor([0, 1, 2, 3, 1])) is None  # no class 3
    assert objective(logits, torch.randn(5)) is None
    assert objective(logits, None) is None


def test_errors():
    one = (torch.ones(2, 3), None)
    with pytest.raises(ValueError, match="at least two batches"):
        noise_scale(Shift(3), [one], mean)
    with pytest.raises(ValueError, match="equally large"):
        noise_scale(Shift(3), [one, (torch.ones(3, 3), None)], mean)
    with pytest.raises(ValueError, match="pass `loss="):
        noise_scale(nn.Linear(3, 1), [one, one])
    with pytest.raises(ValueError, match="no parameter"):
        noise_scale(nn.ReLU(), [one, one], mean)
