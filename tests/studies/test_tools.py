"""find_copies at scale, and beside other tools: the data, the rows and the tables."""

import json

import pytest
import torch

from studies import known_copies, scale, tools
from studies.own_process import taken
from studies.pairs import ALONE


def pictures(n=600):
    coarse = torch.rand(n, 3, 4, 4)
    return (torch.nn.functional.interpolate(coarse, 32, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


@pytest.mark.parametrize("name", known_copies.SETS)
def test_copies_of_one_scene_show_the_same(name, monkeypatch):
    monkeypatch.setattr(known_copies, "SINGLES", 100)
    images, scene = known_copies.images_of(name, pictures())
    assert len(images) == len(scene)
    assert (scene == ALONE).sum() == 100
    one, two = images[(scene == 0).nonzero()[:2, 0]].float()
    apart = min(float((one - x).abs().mean()) for x in (two, two.flip(-1)))
    assert apart == 0 if name == "exact copies" else apart < 60


def test_tickets_of_one_scene_have_most_words_in_common():
    words, scene = known_copies.tickets()
    one, two = words[(scene == 3).nonzero()[:2, 0]]
    assert 32 <= (one == two).sum() <= 40


def test_find_copies_and_equal_files_find_what_they_should(tmp_path):
    images, scene = known_copies.images_of("exact copies", pictures(800))
    known_copies.write(images, tmp_path)
    for look in (tools.ours, tools.equal_files):
        found = tools.of_pairs(look(str(tmp_path)), scene)
        assert found["recall"] == 1
        assert found["precision"] > 0.95


def test_what_is_not_installed_and_what_fails_is_told():
    odd = {"a": (tools.ours_text, "no-such-package"), "b": (tools.ours_text, "torch")}
    rows = tools._rows(odd, {"tickets": torch.tensor([0, 0])}, ["no words"], None)
    assert [row["missing"] for row in rows] == ["not installed", "failed"]
    table = tools.render({"rows": json.loads(json.dumps(rows))})
    assert "| tickets | 2 | a | not installed |" in table


def test_a_row_of_a_tool_and_of_a_scale():
    words, scene = known_copies.tickets()
    (row,) = tools._rows({"ours": (tools.ours_text, "torch")}, {"tickets": scene}, [words], 1)
    assert row["precision"] == 1
    assert row["peak_bytes"] > 0
    assert "| ours | 1.000 | 0." in tools.render({"rows": [row]})
    x, scene = scale.sketches(pictures(), 2000)
    assert x.shape == (2000, 38)
    took = taken(scale.search, x, True, threads=1)
    row = scale._row(2000, True, took, None, scene)
    assert "| 2,000 | all pairs |" in scale.render({"rows": [row]})
    assert row["near"] > 100
