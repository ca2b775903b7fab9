"""Shared fixtures."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)


@pytest.fixture(params=["reuse", "recompute"])
def shallow(request):
    return request.param


@pytest.fixture
def _fresh_accelerate():
    """Accelerate keeps its precision for the whole process."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
