"""What docs/paper.md quotes is what was measured, what it computes is right, and whom it cites."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

import pfb
from pfb.lab.train.options.presets import PRESETS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/paper.md").read_text()
GPU = (ROOT / "results/gpu-h100/table.md").read_text()
DEVIATIONS = (ROOT / "results/deviations-cpu/deviations.md").read_text()
WHOLE = "".join((ROOT / f"results/{folder}/whole.md").read_text() for folder in ("cifar-cpu", "cifar-15-cpu"))
SATURATED = (ROOT / "results/saturated-cpu/table.md").read_text()
PUBLISHED = {"33.2"}
"""Figures of the paper that stand between measured ones."""
COMPUTED = {"19.2", "44.4", "32.3", "22.3"}
"""Figures that a test below computes."""
SETTINGS = {"5 %", "87.5", "30 %", "40 %", "50 %", "70 %"}
"""Numbers that say what was run."""


def section(title):
    """From a heading to the next, without code."""
    assert f"\n{title}\n" in PAGE
    text = PAGE.split(f"\n{title}\n")[1]
    text = re.split(r"^#+ ", text, maxsplit=1, flags=re.MULTILINE)[0]
    return re.sub(r"`[^`]*`", "", text)


def quoted(text):
    """Differences with their intervals, and numbers with decimals or in percent."""
    pairs = re.findall(r"([-+]\d+\.\d+)\s±\s(\d+\.\d+)", text)
    text = re.sub(r"[-+]\d+\.\d+\s±\s\d+\.\d+", "", text)
    numbers = re.findall(r"(?<![\d.,])(\d+\.\d+|\d+\s%)(?![\d.])", text)
    return pairs, [re.sub(r"\s", " ", number) for number in numbers]


@pytest.mark.parametrize(
    ("title", "table", "least"),
    [
        ("### Where full training is saturated", SATURATED, 4),
        ("### Where full training is not saturated", GPU, 8),
        ("### At less time", GPU, 6),
        ("## A rule that wins on clean data?", GPU, 1),
    ],
)
def test_what_a_section_quotes_stands_in_the_table_of_its_results(title, table, least):
    pairs, numbers = quoted(section(title))
    for pair in pairs:
        assert " ± ".join(pair) in table or " +- ".join(pair) in table, pair
    for number in {*numbers} - PUBLISHED - COMPUTED - SETTINGS:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", table), number
    assert len(pairs) + len(numbers) >= least


def test_other_differences_on_the_page_stand_in_one_of_the_tables():
    pairs, _ = quoted(PAGE)
    for pair in pairs:
        assert " ± ".join(pair) in SATURATED + WHOLE or " +- ".join(pair) in GPU, pair
    assert len(pairs) > 20


def test_what_is_said_of_deviations_is_what_they_changed():
    """Each share of samples kept the same, beside the reading it belongs to."""
    said = {
        "sigma: of the centers": "| 74 % kept the same",
        "N: samples so far": "| 99 %: hardly",
        "64 centers (release)": "| 91 %: less than another draw",
        "reduced by averages of neighbours (release)": "| 80 %; without",
        "not reduced: 256 channels": "reduction 69 %: more",
        "h as a variance (release)": "| 91 %: less than another draw",
        "mean of log kernels (release)": "| 62 %, random would be 60 %",
        "another draw of the random term": "more than 84 % the same",
    }
    for reading, words in said.items():
        assert words in " ".join(PAGE.split())
        (share,) = re.findall(rf"^\| {re.escape(reading)} \| (\d+) \(", DEVIATIONS, re.MULTILINE)
        assert f"{share} %" in words


def test_rows_of_arms_are_those_of_the_results():
    """Row by row: an arm's share and difference belong together."""
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+ %) \| (\S+) ± (\S+) \|", section_with_code(), re.MULTILINE)
    assert [row[0] for row in rows] == ["paper", "copies", "uniform", "short"]
    plain = GPU.split("ResNet-18 on CIFAR-10, 50,000 images")[1].split("\n\n")[1]
    for arm, share, mean, interval in rows:
        (line,) = (line for line in plain.splitlines() if line.startswith(f"| `{arm}` |"))
        assert f"| {mean} +- {interval} |" in line
        assert f"| {share} |" in line


def section_with_code():
    return PAGE.split("\n### Where full training is not saturated\n")[1].split("\n### ")[0]


def test_the_table_on_hardness_is_the_results_own():
    rows = [line for line in GPU.splitlines() if line.startswith("| `hardest` |")]
    assert len(rows) == 1
    assert rows[0] in PAGE


def test_step_times_stand_beside_the_right_step():
    for name, row in {"ResNet-50, eager": "resnet50, eager", "ResNet-50, compiled": "resnet50, compiled"}.items():
        ((paper, ideal),) = re.findall(rf"^\| {name} \| (\S+) % \| (\S+) % \|", PAGE, re.MULTILINE)
        (line,) = (line for line in GPU.splitlines() if line.startswith(f"| {row}, 256 x 224 | 40 %") and "to" in line)
        cells = [cell.strip().split(" ")[0] for cell in line.split("|")]
        assert (ideal, paper) == (cells[4], cells[7])


def test_the_limits_by_operations_are_those_of_resnet50():
    with torch.device("meta"):
        model, x = torchvision.models.resnet50(), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        model(x)
    counts = {name: sum(by_operation.values()) for name, by_operation in counter.get_flop_counts().items()}
    until_layer1 = (counts["ResNet.conv1"] + counts["ResNet.layer1"]) / counts["ResNet"]
    until_layer2 = until_layer1 + counts["ResNet.layer2"] / counts["ResNet"]
    computed = {f"{100 * value:.1f}" for s in (until_layer1, until_layer2) for value in (s, 0.4 * (1 - s))}
    assert computed == COMPUTED
    assert all(f"{value} %" in " ".join(PAGE.split()) for value in COMPUTED)


def test_the_settings_of_the_page_are_those_of_the_code():
    settings = pfb.paper(total_steps=9000)
    density, schedule = settings["density"], settings["prune"]
    assert (density.n_centers, density.beta, settings["rule"].alpha, settings["feature_dim"]) == (100, 0.01, 0.01, 128)
    assert (schedule.prune, schedule.start, schedule.stop, len(schedule.ramp)) == (0.4, 2 / 90, 79 / 90, 8)
    here = {row[1]: row[-2] for row in (re.split(r" *\| *", line) for line in PAGE.splitlines() if line[:1] == "|")}
    assert here["centers C"] == "100"
    assert here["beta"] == "0.01"
    assert here["share p"] == "40 %"
    assert here["window"].startswith("2/90 to 79/90")
    assert here["ramp"] == "the same in eight levels"
    assert here["D"].startswith("at most 128")


def test_presets_that_are_named_exist():
    named = set(re.findall(r"--preset ([\w-]+)", PAGE))
    assert {"cifar10", "imagenet-r50", "imagenet-swin-t"} <= named <= PRESETS.keys()


def test_the_paper_is_cited_as_citation_cff_has_it():
    cited = (ROOT / "CITATION.cff").read_text().split("preferred-citation:")[1]
    given = re.findall(r"given-names: (.*)\n +family-names: (.*)", cited)
    names = " and ".join(f"{family}, {first}" for first, family in given)
    assert len(given) == 5
    for name in ("title", "collection-title", "year"):
        (value,) = re.findall(rf"^  {name}: \"?(.*?)\"?$", cited, re.MULTILINE)
        assert f"{{{value}}}" in PAGE
    assert f"{{{names}}}" in PAGE
    (number,) = re.findall(r"arXiv:([\d.]+)", cited)
    assert f"{{{number}}}" in PAGE
