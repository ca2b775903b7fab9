"""find_copies at scale, and beside other tools: the data, the rows and the tables."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pfb.lab.errors import RunError
from pfb.lab.train.data.source import InMemory
from studies import cifair, known_copies, scale, tools
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


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Twelve test images of which four repeat a training image, in an order by class; and lists
    that count in another order.
    """
    train, y_train = pictures(40), torch.arange(40) % 4
    test, y_test = pictures(12), torch.arange(12) % 4
    test[[0, 5, 7]] = train[[20, 9, 30]]
    test[11] = test[3]
    np.savez(
        tmp_path / "cifair10.npz",
        test_train=np.array([[0, 20, 1], [5, 9, 1], [7, 30, 2]]),
        test_test=np.array([[11, 3, 1]]),
        y_train=y_train.numpy().astype(np.uint8),
        y_test=y_test.numpy().astype(np.uint8),
    )
    parts = [(x[y.argsort(stable=True)], y.sort().values) for x, y in ((train, y_train), (test, y_test))]
    source = SimpleNamespace(train=InMemory(*parts[0]), test=InMemory(*parts[1]))
    monkeypatch.setattr(cifair, "load", lambda config: source)
    return cifair.CifairConfig(folder=tmp_path, train_samples=20, out=tmp_path / "cifair.json")


def test_lists_in_the_order_of_cifar_are_found_in_that_of_the_classes(listed):
    images, pairs, tests = cifair.chosen(listed)
    assert (len(images), tests) == (32, 12)
    assert sorted(pairs.values()) == [1, 1, 1, 2]
    assert all(torch.equal(images[a], images[b]) for a, b in pairs)


def test_what_tools_find_of_the_lists_is_told_in_a_table(listed, monkeypatch):
    some = {"equal files": (tools.equal_files, "torch"), "none": (tools.fastdup, "no-such-package")}
    monkeypatch.setattr(tools, "IMAGE_TOOLS", some)
    table = cifair.run(listed).read_text()
    assert "| equal files | 1.000 | 1.000 | 5 | 1.000 |" in table
    assert "| none | not installed |" in table


def test_lists_of_other_data_are_refused(listed, tmp_path):
    with pytest.raises(RunError, match="number of images of a class"):
        cifair.places(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    (tmp_path / "cifair10.npz").unlink()
    with pytest.raises(RunError, match=r"must hold cifair10\.npz"):
        cifair.chosen(listed)
