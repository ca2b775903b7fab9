"""The adviser on six kinds of data whose answer is known, small."""

import pytest
import torch

from studies import advice
from studies.group_data import Pictures, _smooth


@pytest.fixture(scope="module")
def pictures():
    """Each of its own colours, detail, and stripes."""
    g = torch.Generator().manual_seed(0)
    n, side = 1200, 32
    wide, fine = (_smooth(n, 3, side, cells, g) - 0.5 for cells in (4, 12))
    amount, pitch, way = (torch.rand(n, 1, 1, 1, generator=g) for _ in range(3))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    stripes = ((0.3 + pitch) * ((6.28 * way).cos() * x + (6.28 * way).sin() * y)).sin()
    light = 0.3 + 0.4 * torch.rand(n, 3, 1, 1, generator=g)
    shown = light + wide * torch.rand(n, 1, 1, 1, generator=g) + fine * amount + 0.3 * (amount - 0.5) * stripes
    return Pictures((255 * shown.clamp(0, 1)).to(torch.uint8), torch.arange(n) % 4)


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
