"""What density knows of loss and class, small."""

import json

import pytest

from studies import __main__ as studies

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


def test_density_is_related_to_the_loss_at_every_cut(tmp_path):
    recipe = ["--recipe.train-samples", "128", "--recipe.batch-size", "64", "--recipe.epochs", "2", "--recipe.cpu"]
    place = tmp_path / "density.json"
    studies.main(["density", *recipe, "--recipe.n-centers", "8", "--every", "1", "--out", str(place)])
    numbers = json.loads(place.read_text())
    assert "tmp" not in json.dumps(numbers), "no folder of this machine in the results"
    assert [look["epoch"] for look in numbers["looks"]] == [1, 2]
    for row in numbers["looks"][-1]["cuts"].values():
        assert -1 <= row["loss"] <= 1
        assert sum(row["kept_by_class"]) / 10 == pytest.approx(0.5, abs=0.05)


def test_a_cut_that_is_no_layer_is_refused_with_the_nearest(tmp_path, capsys):
    with pytest.raises(SystemExit):
        studies.main(["density", "--recipe.cpu", "--cuts", "layer1", "layr2", "--out", str(tmp_path / "density.json")])
    assert "--cuts: no 'layr2' among" in (said := capsys.readouterr().err)
    assert "Did you mean 'layer2'" in said
