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
from pfb.lab.bench import memory, speed
from pfb.lab.train.options.config import TrainConfig, settings_in
from studies import advice, cifair, deviations, grid, groups, saturated, scale, sets, starved, stream, tools, whole
from studies.gpu import scheduler
from studies.gpu import table as gpu

ROOT = Path(__file__).parents[2]
SHOWN = {
    "docs/redundancy.md": [f"natural-cpu/{name}.md" for name in ("overview", *sets.SETS, "stream")],
    "docs/advise.md": ["advice-cpu/advice.md"],
    "docs/copies.md": ["copies-cpu/tools.md", "copies-cpu/cifair.md", "copies-cpu/scale.md"],
    "docs/paper.md": [
        "saturated-cpu/table.md",
        "cifar-cpu/whole.md",
        "cifar-15-cpu/whole.md",
        "deviations-cpu/deviations.md",
    ],
    "docs/cost.md": ["bench-cpu/speed-resnet18-cifar.md"],
    "docs/gpu.md": ["gpu-h100/table.md"],
    "docs/method.md": ["groups-cpu/groups.md", "groups-cpu/starved.md"],
}
"""Result tables that stand on a page word by word, if they are there."""
PAGES = [ROOT / "README.md", ROOT / "results/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run_from_top_to_bottom(page):
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def with_the_lines(diff, sign):
    """The code of a diff with the lines that have this sign, and those that have none."""
    return "\n".join(line[2:] for line in diff.splitlines() if line[:1] in (sign, " "))


def test_the_readmes_diffs_run_and_their_shapes_are_true():
    before, inside = blocks(ROOT / "README.md", "diff")
    model = torchvision.models.resnet18(num_classes=10)
    x, y = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    names: dict[str, Any] = {
        "resnet18": lambda num_classes: model,
        "model": model,
        "loader": [(x, y)],
        "criterion": torch.nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
    }
    exec(with_the_lines(before, "+"), names)
    assert names["x"].shape == (64, 3, 32, 32)
    assert names["y"].shape == (64,)
    names |= {"x": x, "y": y}
    exec(with_the_lines(inside, "+"), names)
    assert names["logits"].shape == (77, 10)
    assert isinstance(names["blocker"], pfb.Blocker)
    names["blocker"].detach()
    exec(with_the_lines(inside, "-"), names)
    assert names["logits"].shape == (128, 10)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_exist(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_flag_of_a_shown_command_exists(page, capsys):
    text = page.read_text()
    for command in re.findall(r"pfb (train|report|advise|bench \w+)((?: +--?[\w.-]+(?: +[^-\s`#]\S*)*)*)", text):
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
        TrainConfig(**settings_in(tmp_path / "run.toml"))


RESULTS = ROOT / "results"
BENCHMARKS = {
    m.__name__.rpartition(".")[2]: m for m in (advice, cifair, deviations, groups, memory, scale, speed, tools)
}
RENDERERS = {"stream": stream.render, "starved": starved.render, "runs": saturated.render, "whole": whole.render}


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/*.json")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_published_tables_are_what_the_code_makes_of_the_published_numbers(file):
    assert file.read_text().count("\n") == 1, "a result is a line"
    table = file.with_suffix(".md")
    rendered = BENCHMARKS[file.stem.split("-")[0]].render(json.loads(file.read_text()))
    assert not table.exists() or table.read_text() == rendered


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/*.jsonl")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_published_tables_are_what_the_code_makes_of_the_published_runs(file):
    if file.stem == "lines":
        assert gpu.render(scheduler.read(file.parent)) == file.with_name("table.md").read_text()
        return
    runs = grid.read(file)
    table = file.with_name("table.md") if file.stem == "runs" else file.with_suffix(".md")
    assert RENDERERS.get(file.stem, grid.render)(runs) == table.read_text()
    cells = [(run.get("set"), run.get("arm", run.get("method")), run.get("prune"), seed_of(run)) for run in runs]
    assert len(set(cells)) == len(cells), "a run is published once"


def seed_of(run):
    return run["seed"] if "seed" in run else run["config"]["seed"]


def test_the_overview_is_what_the_code_makes_of_the_published_runs():
    assert grid.overview(RESULTS / "natural-cpu") == (RESULTS / "natural-cpu/overview.md").read_text()


@pytest.mark.parametrize(("page", "tables"), SHOWN.items())
def test_pages_show_the_published_tables_as_they_are(page, tables):
    text = (ROOT / page).read_text()
    for table in tables:
        if (RESULTS / table).exists():
            assert (RESULTS / table).read_text().strip() in text, table


def test_nothing_is_published_that_no_page_shows():
    text = "".join(page.read_text() for page in PAGES)
    shown = {table for tables in SHOWN.values() for table in tables} | {"README.md"}
    for file in RESULTS.rglob("*.*"):
        name = file.relative_to(RESULTS).as_posix()
        assert name in shown or f"results/{name})" in text, name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_line_of_text_is_a_comment(page):
    """One that begins with a percent sign would be missing on the site."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^%.*", text, re.MULTILINE)


def test_no_gaps_are_left():
    for page in PAGES:
        assert "<!--" not in page.read_text(), page.name
