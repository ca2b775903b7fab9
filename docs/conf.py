"""The documents site: ``make docs``. Nothing on a page is loaded from elsewhere."""

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

import pfb

HERE = Path(__file__).parent

project = "pfb"
author = "The pfb authors"
copyright = "the pfb authors, Apache-2.0"
version = release = pfb.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3

napoleon_custom_sections = [("Attributes", "params_style")]  # of which a line may name several
napoleon_use_rtype = False
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# A reference that leads nowhere is an error (-n), except the types of other libraries: their
# documents are not asked over the network, so they are not linked.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|collections|pathlib|lightning|pl|transformers)\..*"),
    ("py:class", r"Tensor|nn\.Module|Path|optional|pfb\.selection\.T"),
]

html_theme = "furo"
html_title = f"pfb {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False


def copy_results(app: Sphinx) -> None:
    """Results are pages and files of the site, too: a copy that git ignores."""
    shutil.copytree(HERE.parent / "results", HERE / "results", dirs_exist_ok=True)


def adapt(app: Sphinx, page: str, source: list[str]) -> None:
    """Guides read well without this site: links that lead out of ``docs/`` lead to the copies here.
    A page that is one table gets a title, and a search finds guides, not tables.
    """
    text = source[0]
    if page.startswith("results/"):
        text = text.replace("](../docs/", "](../")
        if page == "results/README":
            text += "\n```{toctree}\n:glob:\n:hidden:\n\n*/*\n```\n"  # of all tables
    elif page != "examples":
        text = text.replace("](../results/", "](results/")
        text = re.sub(r"\]\(\.\./examples/(\w+)\.(py|ipynb)\)", r"](examples.md#\1\2)", text)
    if page == "limits":
        text = re.sub(r"^(\|.*\|)[^|]*\|$", r"\1", text, flags=re.MULTILINE)  # names of tests are not for readers
    if not re.search(r"^# ", text, re.MULTILINE):
        text = f"# {page.removeprefix('results/')}\n\n{text}"
    source[0] = f"---\nnosearch: true\n---\n{text}" if page.startswith("results/") else text


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", copy_results)
    app.connect("source-read", adapt)
