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
    assert len(row) == 4, "case, BatchPruner, attach, test"
    named = re.findall(r"`(\S+)(?: (\w+))?`", row[3])
    assert named or row[1:] == ["not tried"] * 3
    for file, name in named:
        path = TESTS / f"{file}.py"
        assert path.exists(), file
        assert not name or name in names_in(path), f"{name} in {file}"


def test_the_page_has_all_its_rows():
    """Were the table written in another way, the test above would pass on none."""
    assert len(ROWS) > 70
    assert not [line for line in PAGE.read_text().splitlines() if "`test_" in line and not line.startswith("| ")]


def test_what_a_row_names_is_a_test_and_no_helper():
    for *_, tests in ROWS:
        assert all(name.startswith(("test_", "Test")) for _, name in re.findall(r"`(\S+) (\w+)`", tests))


def test_each_situation_has_a_row():
    """No situation is tested of which the page does not speak."""
    tree = ast.parse((TESTS / "system/test_situations.py").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test")}
    shown = set(re.findall(r"`system/test_situations (\w+)`", PAGE.read_text()))
    for name, node in classes.items():
        assert shown & {name, *(test.name for test in node.body if isinstance(test, ast.FunctionDef))}, name
