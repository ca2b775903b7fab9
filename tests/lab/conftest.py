"""What all tests of the laboratory share."""

import pytest

from tests.lab.train.runs import shorten


@pytest.fixture(autouse=True)
def _small():
    """By a patch of its own, which outlives a test's ``monkeypatch.undo()``."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch.setattr)
        # A tenth of the text, and of it to test on, tells as well that a model has learned.
        patch.setattr("pfb.lab.train.data.generated.TEXT_LIMIT", 200_000)
        patch.setattr("pfb.lab.train.data.generated.TEST_PIECES", 100)
        # Two of each end and class are a grid as well.
        patch.setattr("pfb.lab.report.samples.GRID_SAMPLES", 2)
        yield


@pytest.fixture(params=["copies", "paper", "paper-before"])
def method(request):
    """A way to prune: before the model, inside it, before it by the model's features."""
    return request.param
