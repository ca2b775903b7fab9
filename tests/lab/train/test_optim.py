"""Optimizers and learning rates by name."""

import pytest
import torch

from pfb.lab.train.nets import optim
from pfb.lab.train.options.config import TrainConfig


@pytest.mark.parametrize("name", ["onecycle", "cosine", "constant"])
def test_schedules_end_where_they_should(name):
    settings = TrainConfig(lr=0.1, lr_schedule=name)
    of = optim.optimizer(torch.nn.Linear(2, 2), settings)
    schedule = optim.schedule(of, settings, 100)
    rates = []
    for _ in range(99):
        of.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert max(rates) == pytest.approx(0.1, rel=1e-2)
    assert rates[-1] < 1e-3 if name != "constant" else rates[-1] == 0.1


def test_a_step_is_a_tenth_after_each_third_and_a_cosine_ends_where_asked():
    rates = {}
    for name in ("step", "cosine"):
        settings = TrainConfig(lr=0.1, lr_schedule=name, warmup=0.1, lr_end=0.01)
        of = optim.optimizer(torch.nn.Linear(2, 2), settings)
        schedule = optim.schedule(of, settings, 90)
        rates[name] = []
        for _ in range(90):
            rates[name].append(schedule.get_last_lr()[0])
            of.step()
            schedule.step()
    assert [rates["step"][i] for i in (0, 29, 30, 59, 60, 89)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])
    assert rates["cosine"].index(max(rates["cosine"])) == 9
    assert rates["cosine"][-1] == pytest.approx(0.01, rel=0.02)


def test_adamw_decays_matrices_only():
    groups = optim.optimizer(torch.nn.Linear(2, 2), TrainConfig(optimizer="adamw")).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 5e-4), (1, 0.0)]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_momentum_asked_for_is_the_momentum_taken(name):
    """OneCycle left to its defaults goes from 0.95 to 0.85, whatever was asked for."""

    def momenta(momentum, lr_schedule):
        settings = TrainConfig(optimizer=name, momentum=momentum, lr_schedule=lr_schedule)
        of = optim.optimizer(torch.nn.Linear(2, 2), settings)
        schedule = optim.schedule(of, settings, 10)
        taken = set()
        for _ in range(9):
            group = of.param_groups[0]
            taken.add(group["momentum"] if name == "sgd" else group["betas"][0])
            of.step()
            schedule.step()
        return min(taken), max(taken)

    assert momenta(0.5, "cosine") == (0.5, 0.5)
    assert momenta(0.9, "onecycle") == pytest.approx((0.85, 0.95), abs=1e-12)
    low, high = momenta(0.5, "onecycle")
    assert 0.45 <= low < 0.47
    assert high == 0.55
    assert momenta(0.0, "onecycle") == (0, 0)
    low, high = momenta(0.98, "onecycle")
    assert 0.97 <= low < high < 1
