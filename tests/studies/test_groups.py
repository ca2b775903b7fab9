"""The study of groups, small: every kind of data is streamed, and each goal is held or missed."""

import json

import pytest

from studies import __main__ as studies
from studies.group_data import GROUPS


def test_old_beside_new(tmp_path):
    flags = ["--data", "digits", "--samples", "320", "--memory", "96", "--batch-size", "32", "--seeds", "0"]
    place = tmp_path / "groups.json"
    studies.main(["groups", *flags, "--epochs", "1", "--repeats", "2", "--out", str(place)])
    numbers = json.loads(place.read_text())
    assert {row["data"] for row in numbers["rows"]} == set(GROUPS)
    assert all(0 <= row[part] <= 1 for row in numbers["rows"] for part in ("group", "rest"))
    table = place.with_suffix(".md").read_text()
    assert all(f"| {name} |" in table for name in GROUPS)
    assert "times (at most 2: " in table
    assert place.with_suffix(".png").exists()


def test_other_data_are_refused():
    with pytest.raises(SystemExit):
        studies.main(["groups", "--groups", "cats"])
