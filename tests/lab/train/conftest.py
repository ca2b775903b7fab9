"""Fixtures of the trainer's tests."""

import pytest


@pytest.fixture
def run(tmp_path):
    """The folder of a run."""
    return tmp_path / "run"
