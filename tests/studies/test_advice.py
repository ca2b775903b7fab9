"""The adviser on data whose answer is known, small."""

import pytest

from studies import advice


@pytest.mark.parametrize("kind", advice.KNOWN)
def test_what_could_be_spared_is_said_within_three_points(kind, pictures):
    found = advice.asked(kind, advice.AdviceConfig(samples=1200), pictures, seed=20)
    assert found["said"] == pytest.approx(found["truth"], abs=advice.POINTS)
    assert found["recommended"] in found["may"]


@pytest.mark.parametrize("name", ["clips", "tail", "code"])
def test_sets_that_were_trained_on_are_looked_at_with_and_without_their_test(name):
    config = advice.AdviceConfig("digits", samples=300)
    for kind in (f"grid, {name}", f"grid, {name} and its test"):
        known = advice.trained(kind, config, 3)
        found = advice.asked(kind, config, None, 3)
        assert (known.test is None) == (kind == f"grid, {name}")
        assert (found["truth"], found["may"]) == (None, [advice.BEST[name]])
        assert 0 <= found["unclear"] <= 1


def test_a_whole_study_writes_numbers_table_and_figure(tmp_path):
    config = advice.AdviceConfig("digits", ("clips", "grid, tail"), (3,), 300, out=tmp_path / "advice.json")
    table = advice.run(config).read_text()
    assert "| clips |" in table
    assert "| grid, tail |" in table
    assert {f.name for f in tmp_path.iterdir()} >= {"advice.json", "advice.md"}


def test_the_table_names_what_is_missed():
    row = {"kind": "clips", "truth": 0.65, "said": 0.64, "unclear": 0.01, "recommended": "remove", "may": ["remove"]}
    row["seconds"] = 9.0
    good, bad = {"rows": [row]}, {"rows": [row, {**row, "said": 0.5}]}
    assert advice.render(good).splitlines()[-1] == "| clips | 65.0% | 64.0% | -1.0 | 1.0% | remove | 9 | met |"
    assert advice.render(bad).splitlines()[-1].endswith("| -15.0 | 1.0% | remove | 9 | missed |")
    unknown = advice.render({"rows": [{**row, "truth": None, "may": ["prune"]}]})
    assert unknown.splitlines()[-1] == "| clips |  | 64.0% |  | 1.0% | remove | 9 | missed |"
    assert len(advice.draw(good).axes) == 1
