"""What all tests of the laboratory share."""

import pytest


@pytest.fixture(autouse=True)
def _few_pairs(monkeypatch):
    """A run's summary times pairs of steps; three are enough to see that it does."""
    monkeypatch.setattr("pfb.lab.train.summary.PAIRS", 3)
