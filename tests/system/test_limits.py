"""Every line of docs/limits.md is a test."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs/limits.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| case")
]


def names_in(file):
    return {
        node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_each_row_names_tests_that_exist(row):
    assert len(row) == 3, "case, behaviour, test"
    named = re.findall(r"`(\S+)(?: (\w+))?`", row[2])
    assert named
    for file, name in named:
        path = TESTS / f"{file}.py"
        assert path.exists(), file
        assert not name or name in names_in(path), f"{name} in {file}"


def test_the_page_has_all_its_rows():
    """Were the table written in another way, the test above would pass on none."""
    assert len(ROWS) > 60
    assert not [line for line in PAGE.read_text().splitlines() if "`test_" in line and not line.startswith("| ")]


def test_what_a_row_names_is_a_test_and_no_helper():
    for *_, tests in ROWS:
        assert all(name.startswith(("test_", "Test")) for _, name in re.findall(r"`(\S+) (\w+)`", tests))
