"""The documents site reaches all that there is, and loads nothing from outside; versions agree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pfb
from pfb import integrations

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_every_public_name_is_in_the_reference():
    reference = "".join(page.read_text() for page in DOCS.glob("api*.md"))
    documented = re.findall(r"^\.\. auto\w+:: pfb\.(\w+)", reference, re.MULTILINE)
    assert set(pfb.__all__) - set(documented) == set()
    adapters = re.findall(r"auto\w+:: pfb\.integrations\.(\w+)", reference)
    assert set(adapters) == {file.stem for file in Path(integrations.__file__).parent.glob("[!_]*.py")}


def test_every_page_can_be_reached():
    index = (DOCS / "index.md").read_text()
    listed = [line for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", index, re.M | re.S) for line in tree.split()]
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= set(listed)


def test_every_example_is_shown():
    shown = (DOCS / "examples.md").read_text()
    for file in (ROOT / "examples").iterdir():
        if file.suffix in (".py", ".ipynb"):
            assert f"](../examples/{file.name})" in shown, file.name
            assert f"## {file.name}\n" in shown, file.name


def test_versions_agree():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    released = re.search(r"^## (\d.+?) - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cited[1].strip('"') == released[1] == pfb.__version__


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("sphinx")
    build = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-n", "-q", "docs", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for file in [*pages, *tmp_path.rglob("*.css")]:
        text = file.read_text()
        loaded = re.findall(r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(https?:[^"'\s>]+)""", text)
        loaded += re.findall(r"""<link\s[^>]*rel="(?:stylesheet|preload|icon)"[^>]*href="(https?:[^"]+)""", text)
        loaded += re.findall(r"""(?:@import|url\()\s*["']?(https?:[^"')\s]+)""", text) if file.suffix == ".css" else []
        assert loaded == [], file
