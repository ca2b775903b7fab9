"""All code in README and docs runs, and what they say about files and commands is true."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import pfb
from pfb.lab import cli
from pfb.lab.bench import comparison, memory, profile, speed
from pfb.lab.train.config import TrainConfig
from studies import (
    agreement,
    clips,
    copies,
    density,
    goals,
    natural,
    neighbours,
    overview,
    predictions,
    scale,
    scaling,
    scoring,
    sight,
    tools,
    trainer,
)

ROOT = Path(__file__).parents[2]
SHOWN = {
    "README.md": ["redundancy-cpu/overview.md"],
    "docs/redundancy.md": [
        f"redundancy-cpu/{name}.md"
        for name in ("sight", "copies", "clips", "code", "code-all", "video", "long", "faults")
    ],
    "docs/cost.md": [
        "measure-cpu/goals.md",
        "measure-cpu/profile-resnet18-cifar.md",
        "measure-cpu/scoring.md",
        "measure-cpu/memory.md",
        "measure-cpu/plan.md",
        "measure-cpu/neighbours.md",
        "measure-cpu/scaling.md",
        "measure-cpu/trainer-resnet8.md",
        "measure-cpu/trainer-resnet20.md",
        "baselines-cpu/table.md",
        "agreement-cpu/resnet18-layer1.md",
    ],
    "docs/accuracy.md": ["saturated-cpu/table.md", "augmented-cpu/table.md", "density-cpu/density.md"],
}
"""Result tables that stand on a page word by word."""
AGAINST = {"augmented-cpu": "pfb-recompute"}
"""The method that a grid's table compares with beside full data and uniform blocking."""
SPEEDS = ("resnet18-cifar", "resnet50", "swin-t", "vit-s", "gpt2", "resnet8-cifar")
"""Results of which a page shows what each variant saves."""
PAGES = [ROOT / "README.md", ROOT / "results/README.md", *sorted((ROOT / "docs").glob("*.md"))]


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
    names: dict[str, Any] = {
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
    for command in re.findall(r"pfb (train|report|plan|advise|bench \w+)((?: +--?[\w.-]+(?: +[^-\s`#]\S*)*)*)", text):
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
BENCHMARKS = {
    m.__name__.rpartition(".")[2]: m
    for m in (
        *(agreement, clips, copies, density, memory, natural, neighbours, predictions),
        *(profile, scale, scaling, scoring, sight, speed, tools, trainer),
    )
}
MADE_BY = {"plan": "predictions", "video": "natural", "code": "natural", "faults": "clips", "long": "clips"}


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/*.json")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_published_tables_are_what_the_code_makes_of_the_published_numbers(file):
    assert file.read_text().count("\n") == 1, "a result is a line"
    table = file.with_suffix(".md")
    stem = file.stem.split("-")[0]
    kind = BENCHMARKS.get(MADE_BY.get(stem, stem)) or BENCHMARKS[file.parent.name.removesuffix("-cpu")]
    rendered = kind.render(json.loads(file.read_text()))
    assert not table.exists() or table.read_text() == rendered


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/runs.jsonl")), ids=lambda f: f.parent.name)
def test_published_comparisons_are_what_the_code_makes_of_the_published_runs(file):
    runs = comparison.read(file)
    assert comparison.render(runs, AGAINST.get(file.parent.name)) == (file.parent / "table.md").read_text()
    assert comparison.overview(runs) == (file.parent / "overview.md").read_text()


@pytest.mark.parametrize("folder", sorted(p.parent for p in RESULTS.glob("*/goals.md")), ids=lambda f: f.name)
def test_goals_are_what_the_code_makes_of_the_published_numbers(folder):
    assert goals.render(folder) == (folder / "goals.md").read_text()


def test_the_overview_is_what_the_code_makes_of_the_published_numbers():
    assert overview.render(RESULTS / "redundancy-cpu") == (RESULTS / "redundancy-cpu/overview.md").read_text()


@pytest.mark.parametrize(("page", "tables"), SHOWN.items())
def test_pages_show_the_published_tables_as_they_are(page, tables):
    text = (ROOT / page).read_text()
    for table in tables:
        assert (RESULTS / table).read_text().strip() in text, table


def test_tables_of_a_part_of_a_result_are_what_the_code_makes_of_it():
    numbers = [json.loads((RESULTS / f"measure-cpu/speed-{name}.json").read_text()) for name in SPEEDS]
    resnet, *transformers = numbers
    text = (ROOT / "docs/cost.md").read_text()
    assert speed.overview(resnet).strip() in text
    assert speed.overview(*transformers).strip() in text


def test_the_method_cards_rows_are_some_of_what_the_code_makes():
    made = agreement.render(json.loads((RESULTS / "agreement-cpu/resnet18-layer3.json").read_text())).splitlines()
    page = (ROOT / "docs/method.md").read_text()
    shown = page[page.index(made[0]) :].split("\n\n")[0].splitlines()
    assert len(shown) == 7
    assert set(shown) <= set(made)


def test_nothing_is_published_that_no_page_shows():
    text = "".join(page.read_text() for page in PAGES)
    shown = {table for tables in SHOWN.values() for table in tables} | {"README.md"}
    of_goals = {f"measure-cpu/{file.name}" for file in RESULTS.glob("measure-cpu/speed-*.json")}
    for file in RESULTS.rglob("*.*"):
        name = file.relative_to(RESULTS).as_posix()
        assert name in shown | of_goals or f"results/{name})" in text, name


def test_no_gaps_are_left():
    for page in PAGES:
        assert "<!--" not in page.read_text(), page.name
