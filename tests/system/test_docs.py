"""All code in README and docs runs, and what they say about files and commands is true."""

import json
import re
from pathlib import Path

import pytest
import torch
import torchvision

import pfb
from pfb.lab import cli
from pfb.lab.bench import comparison, memory, profile, speed
from pfb.lab.train.config import TrainConfig
from studies import agreement, criterion, goals, predictions, scoring

ROOT = Path(__file__).parents[2]
SHOWN = {
    "README.md": ["cpu/goals.md", "accuracy-saturated/overview.md", "accuracy-augmented/overview.md"],
    "docs/cost.md": [
        "cpu/goals.md",
        "cpu/profile-resnet18-cifar.md",
        "cpu/scoring.md",
        "cpu/memory.md",
        "cpu/plan.md",
        "agreement/resnet18-layer1.md",
    ],
    "docs/accuracy.md": ["accuracy-saturated/table.md", "accuracy-augmented/table.md", "criterion/criterion.md"],
}
"""Result tables that stand on a page word by word."""
AGAINST = {"accuracy-augmented": "pfb-recompute"}
"""The method that a grid's table compares with beside full data and uniform blocking."""
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


RESULTS = ROOT / "results"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/*.json")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_published_tables_are_what_the_code_makes_of_the_published_numbers(file):
    numbers, table = json.loads(file.read_text()), file.with_suffix(".md")
    if file.name == "runs.json":
        against = AGAINST.get(file.parent.name)
        assert comparison.render(numbers, against) == (file.parent / "table.md").read_text()
        assert comparison.overview(numbers) == (file.parent / "overview.md").read_text()
        return
    benchmarks = {
        m.__name__.rpartition(".")[2]: m for m in (agreement, criterion, memory, predictions, profile, scoring, speed)
    }
    kind = benchmarks.get(file.parent.name) or benchmarks[file.stem.split("-")[0].replace("plan", "predictions")]
    assert kind.render(numbers) == table.read_text()


@pytest.mark.parametrize("folder", sorted(p.parent for p in RESULTS.glob("*/goals.md")), ids=lambda f: f.name)
def test_goals_are_what_the_code_makes_of_the_published_numbers(folder):
    assert goals.render(folder) == (folder / "goals.md").read_text()


@pytest.mark.parametrize(("page", "tables"), SHOWN.items())
def test_pages_show_the_published_tables_as_they_are(page, tables):
    text = (ROOT / page).read_text()
    for table in tables:
        assert (RESULTS / table).read_text().strip() in text, table


def test_no_gaps_are_left():
    for page in PAGES:
        assert "<!--" not in page.read_text(), page.name
