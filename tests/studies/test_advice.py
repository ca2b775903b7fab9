"""The adviser on six kinds of data whose answer is known, small."""

import pytest

from studies import advice


@pytest.mark.parametrize("kind", advice.KNOWN)
def test_what_could_be_spared_is_said_within_three_points(kind, pictures):
    found = advice.asked(kind, 1200, pictures, seed=20)
    assert found["said"] == pytest.approx(found["truth"], abs=advice.POINTS)
    assert found["recommended"] in found["may"]


def test_the_table_names_what_is_missed():
    row = {"kind": "clips", "truth": 0.65, "said": 0.64, "recommended": "prune", "may": ["prune"], "seconds": 9.0}
    good, bad = {"rows": [row]}, {"rows": [row, {**row, "said": 0.5}]}
    assert advice.render(good).splitlines()[-1] == "| clips | 65.0% | 64.0% | -1.0 | prune | 9 | met |"
    assert advice.render(bad).splitlines()[-1].endswith("| -15.0 | prune | 9 | missed |")
    assert len(advice.draw(good).axes) == 1
