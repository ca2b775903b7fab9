"""The house: packages by question, imports that run one way, and a core that needs torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pfb

ROOT = Path(pfb.__file__).parent
REPOSITORY = Path(__file__).parents[2]
LAB = ROOT / "lab"
PACKAGES = [
    "utils",
    "density",
    "selection",
    "model",
    "features",
    "pruning",
    "blocking",
    "copies",
    "adviser",
    "integrations",
    "lab",
]
"""Each may import those before it only."""
NEEDS_MORE = {"lab", "integrations"}
"""The packages that may import more than torch."""
ONLY_IF_ASKED = {"copies/index.py": {"faiss"}, "copies/quality.py": {"PIL"}}
"""Extras, imported at their use."""
FLOORS = ["errors", "files", "origin", "early", "baselines", "train", "bench", "report", "advise", "cli"]
"""Each place of the laboratory may import those before it only."""
MOST_FILES, MOST_LINES = 9, 350
LIBRARY_LINES, ALL_LINES = 5_450, 10_030
"""Of code, without docstrings, comments and blank lines; 5,000 of the library are the goal."""


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def ours(path, package="pfb"):
    prefix = package + "."
    return {name.removeprefix(prefix).split(".")[0] for name in imported(path) if name.startswith(prefix)}


def sources(folder=ROOT):
    return [path for path in folder.rglob("*.py") if "__pycache__" not in path.parts]


def library():
    return [path for path in sources() if path.relative_to(ROOT).parts[0] != "lab"]


def lines(paths):
    return sum(len(path.read_text().splitlines()) for path in paths)


def test_every_package_has_its_place():
    assert sorted(p.parent.name for p in ROOT.glob("*/__init__.py")) == sorted(PACKAGES)
    assert {p.name for p in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    allowed = {*PACKAGES[: PACKAGES.index(package) + 1], *pfb.__all__}
    for path in sources(ROOT / package):
        above = (ours(path) & set(PACKAGES)) - allowed
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


def test_no_two_files_import_each_other():
    graph = {path: {name for name in imported(path) if name.startswith("pfb.")} for path in library()}
    names = {path: ".".join(("pfb", *path.relative_to(ROOT).with_suffix("").parts)) for path in graph}
    lazily = {"pfb.pruning.agreement"}  # a type, while checking only
    for path, needs in graph.items():
        for other, back in graph.items():
            both = names[other] in needs and names[path] in back
            assert not both or names[path] in lazily or names[other] in lazily, f"{path} and {other}"


def test_the_laboratory_imports_downwards():
    for place, name in enumerate(FLOORS):
        files = [LAB / f"{name}.py"] if (LAB / f"{name}.py").exists() else (LAB / name).rglob("*.py")
        for path in files:
            assert not ours(path, "pfb.lab") & set(FLOORS[place + 1 :]), path


def test_no_folder_is_crowded_and_no_file_long():
    for folder in {path.parent for path in sources()}:
        found = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(found) <= MOST_FILES, f"{folder.relative_to(ROOT)} holds {len(found)} files"
    for path in sources():
        assert lines([path]) <= MOST_LINES, path


def lines_of_code(paths):
    return sum(len(_code(path)) for path in paths)


def _code(path):
    """Numbers of the lines that hold code."""
    tree, found = ast.parse(path.read_text()), set()
    documented = ast.Module, ast.ClassDef, ast.FunctionDef
    for node in ast.walk(tree):
        first = node.body[0] if isinstance(node, documented) and node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            found |= set(range(first.lineno, first.end_lineno + 1))
    lines = enumerate(path.read_text().splitlines(), start=1)
    return [i for i, line in lines if line.strip() and not line.strip().startswith("#") and i not in found]


def test_the_library_stays_small():
    assert lines_of_code(library()) <= LIBRARY_LINES
    assert lines_of_code(sources()) <= ALL_LINES


def test_every_public_name_is_loaded_at_its_first_use():
    code = """
import sys, pfb
print("torch" in sys.modules, "attach" in dir(pfb))
print(all(getattr(pfb, name).__module__ == f"pfb.{place}" for place, names in pfb._PLACES.items() for name in names))
print(callable(pfb.attach), hasattr(pfb, "Unifrom"))
print([name for name in ("torchvision", "timm", "accelerate", "matplotlib", "numpy", "pfb.lab") if name in sys.modules])
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split()[:5] == ["False", "True", "True", "True", "False"]
    assert "pfb.lab" not in loaded.stdout
    typed = {name for name in imported(ROOT / "__init__.py") if name.startswith("pfb.")}
    assert typed == {f"pfb.{place}.{name}" for place, names in pfb._PLACES.items() for name in names} | {
        f"pfb.{place}" for place in pfb._PLACES
    }


def test_only_one_file_registers_hooks_that_stay():
    registering = {p.name for p in library() if "register_forward" in p.read_text()}
    assert registering == {"hooks.py", "scoring_pass.py"}
    assert "handle.remove()" in (ROOT / "model" / "scoring_pass.py").read_text()


def test_the_library_needs_torch_alone():
    standard = sys.stdlib_module_names
    for path in library():
        place = path.relative_to(ROOT)
        if place.parts[0] in NEEDS_MORE:
            continue
        foreign = {i.split(".")[0] for i in imported(path)} - standard - {"pfb", "torch", "__future__"}
        foreign -= ONLY_IF_ASKED.get(place.as_posix(), set())
        assert not foreign, f"{place} imports {foreign}"


def test_without_the_laboratorys_packages_the_command_says_what_to_install():
    code = "import sys; sys.modules['tyro'] = None; from pfb.__main__ import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    needed = "pfb: the command line needs tyro, which is not installed: pip install 'torch-pfb[train]'"
    assert run.stderr.strip() == needed
