"""Shared fixtures."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)


@pytest.fixture(params=["reuse", "recompute"])
def shallow(request):
    return request.param
