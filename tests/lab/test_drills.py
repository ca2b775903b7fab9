"""Drills: thousands of damaged images and a hundred damaged folders of runs, none wrong."""

import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import time
import traceback
import warnings
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from pfb.lab import cli
from pfb.lab.errors import RunError
from pfb.lab.train.data import pixels
from pfb.lab.train.loop import train
from tests.lab.train.runs import config, interrupt_evaluation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore"),
]

IMAGES = 1000  # of each of the five kinds
FOLDERS = 100
SAVED: dict[str, list[dict[str, Any]]] = {
    "PNG": [{}, {"optimize": True}],
    "JPEG": [{}, {"progressive": True}, {"quality": 20, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}],
    "GIF": [{}, {"save_all": True, "append_images": [Image.new("P", (40, 30))] * 3}],
    "WEBP": [{}, {"lossless": True}, {"save_all": True, "append_images": [Image.new("RGB", (40, 30))] * 3}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "tiff_adobe_deflate"}],
}
MODES = {"PNG": ("RGB", "RGBA", "P", "L", "1", "I;16"), "JPEG": ("RGB", "L", "CMYK"), "GIF": ("P", "L", "RGB")}
GIB = 2**30


class TestDamagedImages:
    @pytest.mark.parametrize("kind", SAVED)
    def test_each_is_read_or_refused(self, tmp_path, kind):
        """In a process of its own, that a decoder might kill."""
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        child = multiprocessing.get_context("fork").Process(target=_read_many, args=(tmp_path / "x", kind, theirs))
        child.start()
        answered = ours.poll(900)
        child.kill() if not answered else child.join()
        assert answered, "an image hangs"
        found = ours.recv()
        print(kind, found)
        assert found["wrong"] == []
        assert found["read"] + found["refused"] == IMAGES
        assert min(found["read"], found["refused"]) > IMAGES / 50, "damage of all degrees"
        assert found["slowest"] < 20
        assert found["grown"] < GIB


def _read_many(place, kind, answer):
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (16 * GIB, 16 * GIB))  # or a mistake takes the machine
    chance = random.Random(kind)
    originals = list(_originals(kind))
    before = psutil.Process().memory_info().rss
    found: dict[str, Any] = {"read": 0, "refused": 0, "wrong": [], "slowest": 0.0}
    for number in range(IMAGES):
        content = _damaged(chance.choice(originals), chance)
        place.write_bytes(content)
        begin = time.process_time()
        try:
            right = pixels.read(place).mode == "RGB"
            found["read"] += 1
        except RunError as error:
            right = str(error).startswith(str(place)) and "\n" not in str(error)
            found["refused"] += 1
        except BaseException as error:
            right = repr(error)
        if right is not True:
            found["wrong"].append((number, right))
        found["slowest"] = max(found["slowest"], time.process_time() - begin)
    found["grown"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    answer.send(found)


def _originals(kind):
    chance = np.random.default_rng(0)
    for mode in MODES.get(kind, ("RGB", "L")):
        values = chance.integers(0, 256, (30, 40, 3), dtype=np.uint8) // 32 * 32
        image = Image.fromarray(values[..., 0].astype(np.uint16)) if mode == "I;16" else Image.fromarray(values)
        for options in SAVED[kind]:
            content = io.BytesIO()
            (image if mode == "I;16" else image.convert(mode)).save(content, format=kind, **options)
            yield content.getvalue()


def _damaged(content, chance):
    """A few bytes changed, more often in the head; cut off; a part doubled, left out or zero."""
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        end = len(content) if chance.random() < 0.5 else min(len(content), 100)
        at, length = chance.randrange(max(1, end)), chance.choice((1, 2, 4, 50))
        match chance.randrange(6):
            case 0 | 1 | 2:
                content[at : at + length] = bytes(
                    chance.choice((0, 1, 127, 255, chance.randrange(256))) for _ in "1234"
                )[:length]
            case 3:
                content[at:at] = content[at : at + length]
            case 4:
                del content[at : at + length]
            case 5 if chance.random() < 0.3:
                del content[at:]
    return bytes(content)


class TestDamagedFolders:
    @pytest.fixture(scope="class")
    def templates(self, tmp_path_factory):
        """A finished run, and one after its first epoch."""
        from accelerate.state import AcceleratorState

        root = tmp_path_factory.mktemp("runs")
        with pytest.MonkeyPatch.context() as patch:
            train(config(root / "finished"))
            AcceleratorState._reset_state(reset_partial_state=True)
            interrupt_evaluation(patch, at=2)
            with pytest.raises(KeyboardInterrupt):
                train(config(root / "begun"))
        for run in (root / "finished", root / "begun"):
            (run / "control.json").write_text('{"arms": [], "seeds": [0]}')
        return [root / "finished", root / "begun"]

    def test_each_works_or_is_one_line(self, templates, tmp_path, capsys):
        from accelerate.state import AcceleratorState

        precious = tmp_path / "precious"
        precious.mkdir()
        (precious / "a").write_text("precious")
        chance, ends, wrong = random.Random(0), {"report": [], "train": []}, []
        for number in range(FOLDERS):
            run = shutil.copytree(chance.choice(templates), tmp_path / "run")
            told = [_damage(run, precious, chance) for _ in range(chance.choice((1, 1, 2, 3)))]
            for command in (["report", str(run), "--out", str(tmp_path / "a.html")], ["train", "--resume", str(run)]):
                capsys.readouterr()
                code = 0
                try:
                    cli.main(command)
                except SystemExit as end:
                    code = end.code
                except BaseException:
                    code = traceback.format_exc()
                errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pfb: ")]
                if (code, len(errors)) not in ((0, 0), (1, 1)):
                    wrong.append((number, command[0], told, errors, code))
                ends[command[0]].append("one line" if code else "works")
                AcceleratorState._reset_state(reset_partial_state=True)
            shutil.rmtree(run)
        assert wrong == []
        assert {p.name: p.read_text() for p in precious.iterdir()} == {"a": "precious"}
        print({name: {end: of.count(end) for end in set(of)} for name, of in ends.items()})
        assert all({"works", "one line"} == set(of) for of in ends.values()), "damage of all degrees"


def _damage(run, precious, chance):
    place = chance.choice(sorted(p for p in run.rglob("*") if "tfevents" not in p.name))
    if place.is_dir() and not place.is_symlink():
        kind = chance.choice(("missing", "link"))
        shutil.rmtree(place)
    else:
        content = place.read_bytes() if place.is_file() and not place.is_symlink() else b"{}"
        kind = chance.choice(
            ("missing", "link", "cut", "bytes", "other", "values", "values", "values", "pipe", "folder")
        )
        place.unlink()
    match kind:
        case "link":
            target = chance.choice(("nowhere", place.name, "/dev/zero", precious, precious / "a"))
            place.symlink_to(target)
        case "cut":
            place.write_bytes(content[: chance.randrange(len(content) + 1)])
        case "bytes":
            place.write_bytes(_damaged(content, chance))
        case "other":
            other = (b"", b"5", b"[]", b"{}", b"null", b'"text"', b"[" * 100_000, b"\xff\xfe", b'{"epoch": 1}\n')
            place.write_bytes(chance.choice(other))
        case "values":
            place.write_bytes(_other_values(content, chance))
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
    return place.relative_to(run).as_posix(), kind


def _other_values(content, chance):
    """JSON with values of other kinds, or without them."""
    try:
        lines = [json.loads(line) for line in content.splitlines()]
        parts, join = lines, "\n"
    except ValueError:
        try:
            parts, join = [json.loads(content)], ""
        except ValueError:
            return _damaged(content, chance)
    for _ in range(chance.choice((1, 3)) if parts else 0):
        at = chance.choice(parts)
        while isinstance(at, dict) and at:
            name = chance.choice(sorted(at))
            if not isinstance(at[name], dict) or chance.random() < 0.3:
                if chance.random() < 0.3:
                    del at[name]
                else:
                    others = (None, 0, -1, 1e308, float("nan"), "", "text", [], [1], {}, {"a": 1}, True, 10**30)
                    at[name] = chance.choice(others)
                break
            at = at[name]
    return "".join(json.dumps(part) + (join or "") for part in parts).encode()
