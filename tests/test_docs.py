"""All code in README and docs runs, and what they say about files and commands is true."""

import re
from pathlib import Path

import pytest
import torch
import torchvision

import pfb
from pfb import cli
from pfb.train.config import TrainConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run_from_top_to_bottom(page):
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def test_the_readmes_diff_runs_and_its_shapes_are_true():
    (diff,) = blocks(ROOT / "README.md", "diff")
    code = "\n".join(line[2:] for line in diff.splitlines() if not line.startswith("-"))
    model = torchvision.models.resnet18(num_classes=10)
    names = {
        "resnet18": lambda num_classes: model,
        "loader": [(torch.randn(128, 3, 32, 32), torch.randint(10, (128,)))],
        "criterion": torch.nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
    }
    exec(code, names)
    assert names["logits"].shape == (77, 10)
    assert isinstance(names["blocker"], pfb.Blocker)
    plain = "\n".join(line[2:] for line in diff.splitlines() if not line.startswith("+"))
    names["blocker"].detach()
    exec(plain, names)
    assert names["logits"].shape == (128, 10)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_exist(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_flag_of_a_shown_command_exists(page, capsys):
    text = page.read_text()
    for command in re.findall(r"pfb (train|report|plan|bench \w+)((?: +--?[\w.-]+(?: +[^-\s`#]\S*)*)*)", text):
        words, flags = command[0].split(), re.findall(r"--[\w.-]+", command[1])
        with pytest.raises(SystemExit) as stopped:
            cli.main([*words, "--help"])
        assert stopped.value.code == 0
        shown = capsys.readouterr().out
        for flag in flags:
            assert flag in shown, f"{' '.join(words)} {flag}"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "toml")], ids=lambda p: p.name)
def test_configuration_files_are_valid(page, tmp_path):
    for block in blocks(page, "toml"):
        (tmp_path / "run.toml").write_text(block)
        TrainConfig.from_file(tmp_path / "run.toml")


def test_no_gaps_are_left():
    for page in PAGES:
        assert "<!--" not in page.read_text(), page.name
