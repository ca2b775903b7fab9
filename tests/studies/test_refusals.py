"""Studies refuse what they cannot measure."""

import pytest

from pfb.lab.bench.setup import Device
from pfb.lab.errors import RunError
from studies.agreement import AgreementConfig
from studies.density import DensityConfig
from studies.predictions import PlanConfig
from studies.scoring import ScoringConfig


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (AgreementConfig, {"dims": (128, 0)}, r"--dims must be at least 1 \(got 0\)"),
        (AgreementConfig, {"repeats": 0}, "--repeats must be at least 1"),
        (DensityConfig, {"cuts": ()}, "--cuts needs at least one value"),
        (DensityConfig, {"prune": -0.1}, "--prune must be in"),
        (DensityConfig, {"every": 0}, "--every must be at least 1"),
        (PlanConfig, {"models": ()}, "--models needs at least one value"),
        (PlanConfig, {"prune": 1.0}, "--prune must be in"),
        (ScoringConfig, {"samples": (64, -1)}, r"--samples must be at least 1 \(got -1\)"),
        (ScoringConfig, {"centers": (1,)}, "--centers must be at least 2"),
        (ScoringConfig, {"base": (8, 1, 8)}, "--base needs at least 2 centers"),
        (ScoringConfig, {"on": Device(precision="bf16")}, "--precision has no effect here"),
    ],
)
def test_a_study_refuses(settings, change, message):
    with pytest.raises(RunError, match=message):
        settings(**change)
