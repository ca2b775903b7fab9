"""Fixtures of the trainer's tests."""

import pytest

from pfb.lab.train import summary


@pytest.fixture(autouse=True)
def _few_pairs(monkeypatch):
    """The cost measurement takes half of a small run's time."""
    monkeypatch.setattr(summary, "PAIRS", 2)


@pytest.fixture
def run(tmp_path):
    """The folder of a run."""
    return tmp_path / "run"
