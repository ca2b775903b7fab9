"""Cheaper features beside the plain ones, small."""

import json

import pytest

from studies import __main__ as studies

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


def test_agreement_of_cheaper_features(tmp_path):
    grid = [
        "--recipe.model",
        "cifar-resnet14",
        "--recipe.train-samples",
        "512",
        "--recipe.batch-size",
        "64",
        "--recipe.cpu",
    ]
    grid += ["--recipe.n-centers", "8", "--recipe.epochs", "2", "--dims", "8", "--repeats", "1"]
    studies.main(["agreement", *grid, "--out", str(tmp_path / "agreement.json")])
    ways = json.loads((tmp_path / "agreement.json").read_text())["ways"]
    assert ways["plain"]["rank_correlation"]["median"] == pytest.approx(1)
    assert ways["plain"]["same_kept"]["median"] == 1
    assert ways["bfloat16"]["rank_correlation"]["median"] > ways["half the resolution"]["rank_correlation"]["median"]
    assert {"after `layer1.0`", "random projection to 8", "average of neighbours to 8"} <= ways.keys()
