"""What all tests of the laboratory share."""

import pytest


@pytest.fixture(autouse=True)
def _few_pairs(monkeypatch):
    """A run's summary times pairs of steps; three are enough to see that it does."""
    monkeypatch.setattr("pfb.lab.train.summary.PAIRS", 3)


@pytest.fixture(autouse=True)
def _few_pieces_of_text(monkeypatch):
    """A tenth of the test set tells as well that a model has learned."""
    monkeypatch.setattr("pfb.lab.train.data.generated.TEST_PIECES", 100)


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch):
    """Two of each end and class are a grid as well."""
    monkeypatch.setattr("pfb.lab.report.samples.GRID_SAMPLES", 2)
