"""All of the evidence of redundancy by one command; tiny."""

import json

import pytest

from studies import __main__ as studies
from studies import overview, verdicts

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


def test_one_command_measures_what_is_missing_and_sums_up(tmp_path, capsys, monkeypatch):
    flags = ["evidence", "--tiny", "--device", "cpu", "--out", str(tmp_path)]
    studies.main([*flags, "--parts", "clips", "long"])
    table = (tmp_path / "overview.md").read_text()
    assert table.count("points of accuracy (n = 2)") == 5
    assert (tmp_path / "overview.png").exists()
    arms = {(run["data"], run["arm"]) for run in json.loads((tmp_path / "clips.json").read_text())["runs"]}
    assert arms >= {("clips", "oracle"), ("clips", "inverse-density"), ("distinct", "uniform"), ("tail", "oracle")}
    monkeypatch.setattr("studies.clips._train", lambda *a: pytest.fail("done before"))
    studies.main([*flags, "--parts", "clips", "long"])
    assert (tmp_path / "overview.md").read_text() == table
    studies.main([*flags, "--parts", "faults", "--minutes", "0"])
    assert "the same command goes on" in capsys.readouterr().out


@pytest.mark.parametrize("sizes", ["cpu", "gpu"])
def test_every_part_is_made_for_either_device(sizes, tmp_path):
    from studies.evidence import PARTS, EvidenceConfig, _parts

    config = EvidenceConfig(sizes=sizes, parts=PARTS[::-1], device="cpu", out=tmp_path)
    assert tuple(name for name, _ in _parts(config)) == PARTS


def test_better_is_plus_also_where_less_is_better(tmp_path):
    def runs(own, base, data, *keys):
        return [
            {"data": data, "prune": 0.5, "seed": seed, "arm": arm, "compute": 0.6, **dict.fromkeys(keys, value)}
            for arm, values in (("inverse-density", own), ("uniform", base))
            for seed, value in enumerate(values)
        ]

    cases = {
        "clips": runs([0.62, 0.64], [0.60, 0.61], "clips", "test_accuracy"),
        "code": runs([1.00, 1.02], [1.03, 1.04], "code", "novel", "all"),
        "video": runs([0.9, 0.9], [1.0, 1.0], "video", "novel", "all"),
    }
    clips = {"data": "cifar10", "clips": 50, "frames": 30, "singles": 2000}
    for name, made in cases.items():
        config = {"clips": clips, "epochs": 3} if name == "clips" else {}
        (tmp_path / f"{name}.json").write_text(json.dumps({"config": config, "runs": made}))
    lines = overview.render(tmp_path).splitlines()[2:]
    assert len(lines) == 5
    assert lines[0].startswith("| CIFAR-10 clips: 50 images of 30 near-equal frames, 2,000 single ones | ")
    assert "| +2.5 ± " in lines[0]
    assert all("| +2.5 ± " in line for line in lines[1:3])
    assert all("| +10.0 ± 0.0 |" in line for line in lines[3:])


def test_a_difference_of_fewer_pairs_than_runs_says_so():
    runs = [
        {"data": "clips", "prune": prune, "seed": seed, "arm": arm, "compute": 0.6, "told": 1.0 + seed}
        for arm, prune, seeds in (("uniform", 0.5, 3), ("inverse-density", 0.5, 3), ("full", 0.0, 2))
        for seed in range(seeds)
    ]
    told = verdicts.differences(runs, "clips", 0.5, "inverse-density", verdicts.Metric("told", "told"))
    assert told == ["+0.00 ± 0.00", "", "", "+0.00 ± 0.00 (n = 2)"]
