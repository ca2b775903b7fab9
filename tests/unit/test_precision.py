"""Half precision with skipped steps, and averaged copies of the weights."""

import torch
from torch import nn

import pfb
from tests import zoo


def batches(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(20, 3, 8, 8, generator=g), torch.randint(5, (20,), generator=g)) for _ in range(n)]


def test_float16_with_a_gradient_scaler_that_skips_a_step():
    """A skipped optimizer step still moves the estimate: its samples were seen. Nothing becomes
    NaN.
    """
    torch.manual_seed(0)
    model = zoo.SmallNet("batch")
    blocker = pfb.attach(model, "layer1", 0.4, density=pfb.MovingCenters(8, 0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=1000)
    scales, moved = [], []
    for x, y in batches(14):
        before = model.fc.weight.detach().clone()
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.cross_entropy(model(x), blocker.select(y))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        blocker.step()
        scales.append(scaler.get_scale())
        moved.append(not torch.equal(before, model.fc.weight))
    assert scales[0] < 2.0**24
    assert not moved[0], "the first scale is too large, so its step must have been skipped"
    assert moved[-1]
    assert blocker.steps == 14
    assert int(blocker.density.counts.sum()) == 8 + 13 * 12
    assert blocker.density.centers.dtype == torch.float32
    assert blocker.density.centers.isfinite().all()
    assert all(p.isfinite().all() for p in model.parameters())


def test_bfloat16_selects_what_float32_selects_when_features_are_clearly_apart():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    nn.init.eye_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    x = torch.zeros(20, 4)
    x[:5] = 8.0  # rare
    chosen = []
    for enabled in (False, True):
        estimator = pfb.MovingCenters(8)
        estimator.accumulate(torch.randn(64, 4, generator=torch.Generator().manual_seed(1)))
        estimator.apply()
        with pfb.attach(model, "0", 0.75, rule=pfb.RareFirst(0.0), density=estimator) as blocker:
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                model(x)
            chosen.append(blocker.selection.indices.tolist())
    assert chosen == [[0, 1, 2, 3, 4]] * 2
