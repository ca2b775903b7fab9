"""What density knows of loss and class, small."""

import json

import pytest

from studies import __main__ as studies

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


def test_the_criterion_is_related_to_the_loss_at_every_cut(tmp_path):
    recipe = ["--recipe.train-samples", "128", "--recipe.batch-size", "64", "--recipe.epochs", "2", "--recipe.cpu"]
    studies.main(["criterion", *recipe, "--recipe.n-centers", "8", "--every", "1", "--out", str(tmp_path)])
    numbers = json.loads((tmp_path / "criterion.json").read_text())
    assert "tmp" not in json.dumps(numbers), "no folder of this machine in the results"
    assert [look["epoch"] for look in numbers["looks"]] == [1, 2]
    for row in numbers["looks"][-1]["cuts"].values():
        assert -1 <= row["loss"] <= 1
        assert sum(row["kept_by_class"]) / 10 == pytest.approx(0.5, abs=0.05)
