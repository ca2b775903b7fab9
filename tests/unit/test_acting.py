"""What is done with near-copies: kept, drawn, listed, chosen; and their lists as files."""

import csv
import dataclasses
import json

import pytest
import torch
from PIL import Image

import pfb
from pfb.copies.acting import Copies


def found(groups, n, labels=None, alike=None):
    near = torch.zeros(n, dtype=torch.bool)
    near[[i for group in groups for i in group]] = True
    alike = torch.ones(n, dtype=torch.int64) if alike is None else torch.tensor(alike)
    return Copies(near, groups, alike, torch.arange(n), labels)


GROUPS = ((6, 0, 1, 2), (5, 3))


def test_one_of_each_group_is_kept_and_a_group_weighs_as_much_as_one_sample():
    copies = found(GROUPS, 8)
    assert copies.keep.tolist() == [4, 5, 6, 7]
    assert copies.keep.dtype == torch.int64
    assert copies.weights.tolist() == [0.25, 0.25, 0.25, 0.5, 1, 0.5, 0.25, 1]
    assert copies.weights.dtype == torch.float64
    assert copies.weights.sum() == len(copies.keep)


def test_of_each_label_in_a_group_one_is_kept_and_conflicts_are_listed():
    labels = ["a", "b", "b", "c", "c", "c", "a", "a"]
    copies = found(GROUPS, 8).with_labels(labels)
    assert copies.keep.tolist() == [1, 4, 5, 6, 7]
    assert copies.conflicts() == ((6, 0, 1, 2),)
    assert copies.groups == GROUPS
    assert copies.weights.tolist() == [0.5, 0.5, 0.5, 0.5, 1, 0.5, 0.5, 1]
    assert copies.with_labels(None).keep.tolist() == [4, 5, 6, 7]
    assert found(GROUPS, 8).with_labels(torch.arange(8)).conflicts() == GROUPS


def test_labels_reach_the_search():
    x = torch.randn(200, 8).repeat(2, 1)
    y = torch.cat([torch.zeros(200), torch.arange(200) % 2]).long()
    copies = pfb.find_copies(x, y)
    assert len(copies.groups) == 200
    assert len(copies.conflicts()) == 100
    assert len(copies.keep) == 300


@pytest.mark.parametrize("labels", [["a"] * 7, torch.ones(8, 3)])
def test_labels_must_be_one_for_each_sample(labels):
    with pytest.raises(ValueError, match="`labels` must be one for each"):
        found(GROUPS, 8).with_labels(labels)


def test_conflicts_need_labels():
    with pytest.raises(ValueError, match="`labels` must be given"):
        found(GROUPS, 8).conflicts()


def test_the_best_of_each_group_is_kept():
    copies = found(GROUPS, 8, alike=[4, 2, 2, 2, 1, 2, 3, 1])
    assert copies.keeping().groups == ((0, 1, 2, 6), (5, 3))
    assert copies.keeping(lambda i: -i).groups == ((0, 1, 2, 6), (3, 5))
    texts = ["x" * k for k in (1, 2, 9, 1, 1, 2, 3, 4)]
    assert copies.keeping("largest", texts).groups == ((2, 0, 1, 6), (5, 3))
    with_labels = copies.with_labels("aabcccaa").keeping(lambda i: i)
    assert with_labels.keep.tolist() == [2, 4, 5, 6, 7]


def test_the_sharpest_image_is_kept_whatever_form_it_has(tmp_path):
    sharp = torch.randint(256, (3, 16, 16), dtype=torch.uint8)
    blurred = torch.nn.functional.avg_pool2d(sharp[None].float(), 3, 1, 1)[0].to(torch.uint8)
    files = []
    for name, x in (("a.png", blurred), ("b.png", sharp)):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(tmp_path / name)
        files.append(str(tmp_path / name))
    copies = found(((0, 1),), 2)
    pictures = [Image.open(file) for file in files]
    last = [x.permute(1, 2, 0).numpy() for x in (blurred, sharp)]
    for samples in ([blurred, sharp], [(blurred, 0), (sharp, 1)], files, pictures, last):
        assert copies.keeping("sharpest", samples).groups == ((1, 0),)
    for picture in pictures:
        picture.close()
    Image.fromarray(blurred.permute(1, 2, 0).numpy()).resize((64, 64)).save(files[0])
    assert copies.keeping("largest", files).groups == ((0, 1),)


@pytest.mark.parametrize(
    ("best", "samples", "says"),
    [
        ("newest", None, "`best` must be"),
        ("largest", None, "pass `samples=`"),
        ("largest", [3] * 8, "to have a size"),
        ("sharpest", [torch.ones(4)] * 8, "to be sharp"),
    ],
)
def test_what_cannot_be_best_is_refused(best, samples, says):
    with pytest.raises(ValueError, match=says):
        found(GROUPS, 8).keeping(best, samples)


NAMES = [f"cats/{i}, é.png" for i in range(8)]


def test_lists_are_read_back(tmp_path):
    copies = found(GROUPS, 8)
    copies.write(tmp_path / "keep.txt", NAMES)
    assert (tmp_path / "keep.txt").read_text(encoding="utf-8").splitlines() == [NAMES[i] for i in (4, 5, 6, 7)]
    copies.write(tmp_path / "keep.txt")
    assert (tmp_path / "keep.txt").read_text() == "4\n5\n6\n7\n"
    copies.write(tmp_path / "my-weights.csv", NAMES)
    with (tmp_path / "my-weights.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["weight"]) for row in rows] == copies.weights.tolist()
    assert [row["file"] for row in rows] == NAMES
    copies.write(tmp_path / "copies.csv", NAMES)
    assert pfb.read_groups(tmp_path / "copies.csv") == tuple(tuple(NAMES[i] for i in g) for g in GROUPS)
    dataclasses.replace(copies, groups=((3, 0),)).write(tmp_path / "copies.csv")
    assert pfb.read_groups(str(tmp_path / "copies.csv")) == ((3, 0),)


@pytest.mark.parametrize(
    ("name", "names", "says"), [("a.json", None, "end in .txt or .csv"), ("a.txt", ["a"], "names")]
)
def test_lists_that_cannot_be_written(tmp_path, name, names, says):
    with pytest.raises(ValueError, match=says):
        found(GROUPS, 8).write(tmp_path / name, names)
    assert not list(tmp_path.iterdir())


FOREIGN = {
    "plain.json": json.dumps({"a": ["b"], "b": ["a", "c"], "c": ["b"], "d": []}),
    "scored.json": json.dumps({"a": [["b", 3]], "b": [["a", 3], ["c", 4]], "c": [["b", 4]]}),
    "similarity.csv": "from,to,distance\nb,a,0.97\nb,c,0.96\n",
    "named.csv": "filename_from,filename_to,distance\nb,a,0.97\nb,c,0.96\n",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_lists_of_other_tools_are_groups(tmp_path, name):
    (tmp_path / name).write_text(FOREIGN[name])
    assert pfb.read_groups(tmp_path / name) == (("b", "a", "c"),)


def test_names_that_look_like_numbers_are_names(tmp_path):
    (tmp_path / "similarity.csv").write_text("from,to,distance\n0007,0010,0.97\n")
    assert pfb.read_groups(tmp_path / "similarity.csv") == (("0007", "0010"),)


def test_components_of_fastdup_are_groups(tmp_path):
    (tmp_path / "c.csv").write_text("__id,component_id,sum\n0,5,1\n1,6,1\n2,5,1\n")
    assert pfb.read_groups(tmp_path / "c.csv") == ((0, 2),)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", "[1]", "no dict"),
        ("a.json", "{", "line 1"),
        ("a.json", '{"a": [3]}', "has the duplicate 3"),
        ("a.csv", "x,y\n1,2\n", "columns are x, y"),
        ("a.csv", "", "columns are none"),
    ],
)
def test_what_is_no_list_says_what_it_holds(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"must be a list of near-copies.*{says}"):
        pfb.read_groups(tmp_path / name)
