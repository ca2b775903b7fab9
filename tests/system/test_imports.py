"""Imports run one way, and the core needs torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pfb

ROOT = Path(pfb.__file__).parent
LAB = ROOT / "lab"
# Each file of the core may import those before it only.
CORE = [
    "errors",
    "tree",
    "density",
    "schedule",
    "selection",
    "sync",
    "centers",
    "estimator",
    "nearest",
    "memory",
    "draw",
    "importance",
    "features",
    "sketch",
    "originals",
    "momentum",
    "views",
    "hints",
    "trace",
    "forward",
    "cost",
    "replay",
    "inputs",
    "threads",
    "gate",
    "hooks",
    "reuse",
    "recompute",
    "cuts",
    "state",
    "blocker",
    "attach",
    "measure",
    "planner",
    "copies",
    "mistaken",
    "batches",
    "noise_scale",
    "survey",
    "findings",
    "wording",
    "advice",
    "adviser",
]
ONLY_IF_ASKED = {"copies/index.py": {"faiss"}, "copies/quality.py": {"PIL"}}
"""Files that import an extra's package inside a function."""
NEEDS_MORE = {"lab", "integrations"}
"""The folders that may import more than torch."""
FLOORS = ["errors", "files", "origin", "baselines", "train", "bench", "report", "advise", "cli"]
"""Each place of the laboratory may import those before it only."""


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


def library():
    return [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in NEEDS_MORE]


def test_every_file_has_its_place():
    assert {path.stem for path in library()} == {"__init__", "__main__", *CORE}
    assert {p.stem for p in LAB.glob("*.py")} | {p.parent.name for p in LAB.glob("*/__init__.py")} == {
        "__init__",
        *FLOORS,
    }


def test_the_library_imports_downwards():
    for place, name in enumerate(CORE):
        above = (ours(ROOT / f"{name}.py") & {*CORE, *NEEDS_MORE}) - set(CORE[:place])
        assert not above, f"{name}.py imports {above}"


def test_the_laboratory_imports_downwards():
    for place, name in enumerate(FLOORS):
        files = [LAB / f"{name}.py"] if (LAB / f"{name}.py").exists() else (LAB / name).rglob("*.py")
        for path in files:
            assert not ours(path, "pfb.lab") & set(FLOORS[place + 1 :]), path


def test_every_public_name_is_loaded_at_its_first_use():
    code = """
import sys, pfb
print("torch" in sys.modules, "attach" in dir(pfb))
import pfb.attach
print(all(getattr(pfb, name).__module__ == f"pfb.{place}" for place, names in pfb._PLACES.items() for name in names))
print(callable(pfb.attach), hasattr(pfb, "Unifrom"))
print([name for name in ("torchvision", "timm", "accelerate", "matplotlib", "pfb.lab") if name in sys.modules])
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["False", "True", "True", "True", "False", "[]"]
    assert sorted(pfb.__all__) == sorted(name for names in pfb._PLACES.values() for name in names)


def test_only_one_file_registers_hooks_that_stay():
    registering = {p.name for p in library() if "register_forward" in p.read_text()}
    assert registering == {"hooks.py", "forward.py"}
    assert "handle.remove()" in (ROOT / "forward.py").read_text()


def test_the_library_needs_torch_alone():
    standard = sys.stdlib_module_names
    for path in library():
        foreign = {i.split(".")[0] for i in imported(path)} - standard - {"pfb", "torch", "__future__"}
        foreign -= ONLY_IF_ASKED.get(path.relative_to(ROOT).as_posix(), set())
        assert not foreign, f"{path} imports {foreign}"


def test_without_the_laboratorys_packages_the_command_says_what_to_install():
    code = "import sys; sys.modules['tyro'] = None; from pfb.__main__ import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.strip() == "pfb: the command line needs tyro, which is not installed: pip install 'pfb[train]'"
