"""Imports run one way, and the core needs torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pfb

ROOT = Path(pfb.__file__).parent
# Each file of the core may import those before it only.
CORE = [
    "tree",
    "density",
    "schedule",
    "selection",
    "sync",
    "estimator",
    "importance",
    "features",
    "gate",
    "wiring",
    "cuts",
    "blocker",
    "measure",
    "planner",
]
OUTER = ["integrations", "baselines", "train", "bench", "report", "cli"]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def ours(path):
    return {name.split(".")[1] for name in imported(path) if name.startswith("pfb.")}


def test_every_file_has_its_place():
    files = {p.stem for p in ROOT.glob("*.py")} | {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert files == {"__init__", *CORE, *OUTER}


def test_the_core_imports_downwards():
    modules = set(CORE + OUTER)
    for place, name in enumerate(CORE):
        above = (ours(ROOT / f"{name}.py") & modules) - set(CORE[:place])
        assert not above, f"{name}.py imports {above}"


def test_the_outer_layers_import_one_way():
    for place, name in enumerate(OUTER):
        files = [ROOT / f"{name}.py"] if (ROOT / f"{name}.py").exists() else (ROOT / name).glob("*.py")
        for path in files:
            assert not ours(path) & set(OUTER[place + 1 :]), path


def test_only_one_file_registers_hooks():
    registering = {p.name for p in ROOT.rglob("*.py") if "register_forward" in p.read_text()}
    assert registering == {"wiring.py"}


def test_the_core_needs_torch_alone():
    standard = sys.stdlib_module_names
    for name in [*CORE, "__init__"]:
        foreign = {i.split(".")[0] for i in imported(ROOT / f"{name}.py")} - standard - {"pfb", "torch", "__future__"}
        assert not foreign, f"{name}.py imports {foreign}"
    code = (
        "import sys, pfb; print([m for m in ('torchvision', 'timm', 'accelerate', 'matplotlib') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
