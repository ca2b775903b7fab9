"""Half precision with skipped steps, and averaged copies of the weights."""

import copy

import torch
from torch import nn
from torch.optim import swa_utils

import pfb
from tests import zoo


def batches(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(20, 3, 8, 8, generator=g), torch.randint(5, (20,), generator=g)) for _ in range(n)]


def test_float16_with_a_gradient_scaler_that_skips_a_step(shallow):
    """A skipped optimizer step still moves the estimate: its samples were seen. Nothing becomes
    NaN.
    """
    torch.manual_seed(0)
    model = zoo.SmallNet("batch")
    blocker = pfb.attach(model, "layer1", 0.4, shallow=shallow, estimator=pfb.DensityEstimator(8, 0.1))
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
    assert int(blocker.estimator.counts.sum()) == 8 + 13 * 12
    assert blocker.estimator.centers.dtype == torch.float32
    assert blocker.estimator.centers.isfinite().all()
    assert all(p.isfinite().all() for p in model.parameters())


def test_bfloat16_selects_what_float32_selects_when_features_are_clearly_apart(shallow):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    nn.init.eye_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    x = torch.zeros(20, 4)
    x[:5] = 8.0  # rare
    chosen = []
    for enabled in (False, True):
        estimator = pfb.DensityEstimator(8)
        estimator.accumulate(torch.randn(64, 4, generator=torch.Generator().manual_seed(1)))
        estimator.apply()
        with pfb.attach(
            model, "0", 0.75, shallow=shallow, importance=pfb.RareFirst(0.0), estimator=estimator
        ) as blocker:
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                model(x)
            chosen.append(blocker.selection.indices.tolist())
    assert chosen == [[0, 1, 2, 3, 4]] * 2


def test_averaged_models_are_not_pruned_and_update_bn_sees_everything(shallow):
    torch.manual_seed(0)
    model = zoo.SmallNet("batch")
    blocker = pfb.attach(model, "layer1", 0.5, shallow=shallow, estimator=pfb.DensityEstimator(8))
    averaged = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data = batches(6)
    for x, y in data:
        nn.functional.cross_entropy(model(x), blocker.select(y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        blocker.step()
        averaged.update_parameters(model)
    state = copy.deepcopy(blocker.state_dict())
    assert averaged(data[0][0]).shape == (20, 5), "a copy lets everything pass, in training mode too"

    by_hand = copy.deepcopy(averaged.module)
    for m in by_hand.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
            m.momentum = None
    with torch.no_grad():
        for x, _ in data:
            by_hand.train()(x)
    swa_utils.update_bn((x for x, _ in data), averaged)
    for (name, a), b in zip(averaged.module.state_dict().items(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    after = blocker.state_dict()
    assert after["step"] == state["step"]
    assert torch.equal(after["estimator"]["centers"], state["estimator"]["centers"])

    swa_utils.update_bn((x for x, _ in data), model)  # of the blocked model itself: without gradients nothing is pruned
    assert blocker.selection is None
