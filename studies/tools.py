"""What do tools that look for duplicates find of copies that are known? find_copies beside
imagededup, CleanVision, fastdup, datasketch and SemHash, each at its defaults.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfb.copies.near_duplicates import find_copies
from pfb.features.sketch import Sketch
from pfb.lab.bench import output
from pfb.lab.bench.setup import Device, On
from pfb.lab.errors import RunError
from pfb.lab.train.data import load
from pfb.lab.train.data.folder import small
from pfb.lab.train.data.source import InMemory
from pfb.lab.train.data.split import copies_among
from pfb.lab.train.options.config import TrainConfig
from studies.known_copies import SETS, images_of, tickets, write
from studies.own_process import Taken, cpu_seconds_so_far, taken
from studies.pairs import of_pairs

Pairs = list[tuple[int, int]]
Look = Callable[[Any], Pairs]
Tools = dict[str, tuple[Look, str]]
MIB = 2**20
TICKETS = "tickets"
SHINGLE = 3  # words, for MinHash
HASHED = 256  # dimensions of hashed words, SemHash's encoder


@dataclass(frozen=True)
class ToolsConfig:
    """Write each set of images to a folder, and have each tool look at all of them in a process of
    its own; texts are given as they are. A tool that is not installed is told.
    """

    data: str = "cifar10"
    """As in pfb train; small images."""
    on: On = field(default_factory=Device)
    out: Path = Path("runs/tools.json")
    """All numbers (.json) and, beside it, the table (.md)."""

    def __post_init__(self) -> None:
        self.on.refuse("precision", "channels_last", "clock")


def run(config: ToolsConfig) -> Path:
    """Look, then write numbers and table; returns the table's path."""
    config.on.start()
    train = load(TrainConfig(data=config.data)).train
    if not isinstance(train, InMemory) or train.images.dtype != torch.uint8:
        raise RunError(f"--data must hold small images (got {config.data!r})")
    sets = {name: images_of(name, train.images) for name in SETS}
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(tempfile.TemporaryDirectory()) for _ in sets]
        for folder, (images, _) in zip(folders, sets.values(), strict=True):
            write(images, Path(folder))
        scenes = {name: scene_N for name, (_, scene_N) in sets.items()}
        rows = _rows(IMAGE_TOOLS, scenes, folders, config.on.threads)
    words, scene_N = tickets()
    rows += _rows(TEXT_TOOLS, {TICKETS: scene_N}, [words], config.on.threads)
    settings = asdict(config) | {"data": config.data.rsplit("/", 1)[-1]}
    numbers = output.origin(settings, torch.device("cpu"))
    numbers["versions"] |= installed(IMAGE_TOOLS) | installed(TEXT_TOOLS)
    return output.write(config.out, {**numbers, "rows": rows}, render)


def render(numbers: dict[str, Any]) -> str:
    """Markdown table."""
    header = ["data", "samples", "tool", "precision", "recall of pairs", "CPU seconds", "memory, MiB"]
    lines = []
    for row in numbers["rows"]:
        start = [row["data"], f"{row['samples']:,}", row["tool"]]
        if row["missing"]:
            lines.append([*start, row["missing"], "", "", ""])
            continue
        precision = f"{row['precision']:.3f}" if row["pairs"] else "none found"
        lines.append([*start, precision, f"{row['recall']:.3f}", f"{row['cpu_seconds']:.1f}", mib(row["peak_bytes"])])
    return output.table(header, lines)


def mib(size: float) -> str:
    """Bytes, for a table."""
    return f"{size / MIB:,.0f}"


def _rows(tools: Tools, scenes: dict[str, Tensor], given: list[Any], threads: int | None) -> list[dict[str, Any]]:
    """A row for each set and tool; the sets are those of ``scenes``, given in their order."""
    told = found(tools, given, threads)
    rows = []
    for number, (data, scene_N) in enumerate(scenes.items()):
        for tool, (missing, took) in told.items():
            row = {"data": data, "samples": len(scene_N), "tool": tool, "missing": missing}
            if took is not None and not missing:
                pairs, seconds = took.result[number]
                row |= {**of_pairs(pairs, scene_N), "cpu_seconds": seconds, "peak_bytes": took.peak_bytes}
            rows.append(row)
    return rows


def found(tools: Tools, given: list[Any], threads: int | None) -> dict[str, tuple[str, Taken | None]]:
    """Of each tool why it cannot tell (empty if it can), and what it finds in each of the sets."""
    told = {}
    for tool, (look, package) in tools.items():
        missing = "not installed" if _version(package) is None else ""
        took = None if missing else taken(looks, look, package, given, threads=threads)
        if took is not None and took.error:
            missing = "needs weights that are downloaded" if "URLError" in took.error else "failed"
        told[tool] = missing, took
    return told


def installed(tools: Tools) -> dict[str, str]:
    """Versions of the packages that are there."""
    versions = {package: _version(package) for _, package in tools.values()}
    return {package: version for package, version in versions.items() if version}


def looks(look: Look, package: str, given: list[Any]) -> list[tuple[Pairs, float]]:
    """What a tool finds in each of the sets, and CPU seconds for that."""
    importlib.import_module(package)
    found = []
    for one in given:
        begin = cpu_seconds_so_far()
        pairs = look(one)
        found.append((pairs, cpu_seconds_so_far() - begin))
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# Images: all files of a folder, numbered


def ours(folder: str) -> Pairs:
    """Sketches of the files, all pairs compared."""
    files = [(str(path), 0) for path in sorted(Path(folder).iterdir())]
    return _in_groups(copies_among(small(files), images=True).groups)


def equal_files(folder: str) -> Pairs:
    """Files of the same bytes."""
    same = defaultdict(list)
    for path in Path(folder).iterdir():
        same[hashlib.sha256(path.read_bytes()).digest()].append(int(path.stem))
    return _in_groups(list(same.values()))


def imagededup_phash(folder: str) -> Pairs:
    """Perceptual hashes that differ in at most 10 of 64 bits."""
    from imagededup.methods import PHash

    found = PHash(verbose=False).find_duplicates(folder, num_enc_workers=0, num_dist_workers=0)
    return [(int(one[:5]), int(two[:5])) for one, others in found.items() for two in others]


def imagededup_cnn(folder: str) -> Pairs:
    """MobileNetV3's features of a cosine of at least 0.9."""
    from imagededup.methods import CNN

    found = CNN(verbose=False).find_duplicates(image_dir=folder)
    return [(int(one[:5]), int(two[:5])) for one, others in found.items() for two in others]


def cleanvision(folder: str) -> Pairs:
    """Exact and near duplicates."""
    from cleanvision import Imagelab

    lab = Imagelab(data_path=folder, verbose=False)
    lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, n_jobs=1, verbose=False)
    sets = [s for kind in ("exact_duplicates", "near_duplicates") for s in lab.info[kind]["sets"]]
    return _in_groups([[int(Path(file).stem) for file in files] for files in sets])


def fastdup(folder: str) -> Pairs:
    """Pairs of a similarity of at least 0.9."""
    import fastdup as tool

    with tempfile.TemporaryDirectory() as work:
        found = tool.create(work, folder)
        found.run(num_threads=torch.get_num_threads(), print_summary=False, overwrite=True)
        pairs = found.similarity()
    pairs = pairs[pairs["distance"] >= 0.9]
    names = [column for column in pairs.columns if "filename" in column][:2]
    return [(int(Path(a).stem), int(Path(b).stem)) for a, b in zip(pairs[names[0]], pairs[names[1]], strict=True)]


# Texts: numbers of words [N, 40]


def ours_text(words: Tensor) -> Pairs:
    """Sketches of the words, all pairs compared."""
    return _in_groups(find_copies(Sketch()(words)).groups)


def datasketch(words: Tensor) -> Pairs:
    """MinHash of runs of three words, at a Jaccard similarity of 0.5."""
    from datasketch import MinHash, MinHashLSH

    index, hashes = MinHashLSH(threshold=0.5, num_perm=128), []
    for number, row in enumerate(words.tolist()):
        one = MinHash(num_perm=128)
        one.update_batch([str(row[i : i + SHINGLE]).encode() for i in range(len(row) - SHINGLE + 1)])
        index.insert(number, one)
        hashes.append(one)
    return [(number, other) for number, one in enumerate(hashes) for other in index.query(one)]


def semhash(words: Tensor) -> Pairs:
    """Cosine of at least 0.9 of hashed words, in place of SemHash's encoder, whose weights are not
    in the package.
    """
    from semhash import SemHash

    texts = [" ".join(f"w{word}" for word in row) for row in words.tolist()]
    records = [{"text": text, "number": str(number)} for number, text in enumerate(texts)]
    tool = SemHash.from_records(records, columns=["text"], model=HashedWords())
    found = tool.self_deduplicate()
    return [
        (int(record.record["number"]), int(other["number"]))
        for record in found.filtered
        for other, _ in record.duplicates
    ]


class HashedWords:
    """An encoder for SemHash: counts of words, hashed."""

    def encode(self, inputs: Sequence[str], **options: Any) -> Any:
        from sklearn.feature_extraction.text import HashingVectorizer

        return HashingVectorizer(n_features=HASHED).transform(inputs).toarray().astype("float32")


def _in_groups(groups: Sequence[Sequence[int]]) -> Pairs:
    return [(one, two) for group in groups for place, one in enumerate(group) for two in group[place + 1 :]]


IMAGE_TOOLS: Tools = {
    "`find_copies`": (ours, "torch"),
    "equal files": (equal_files, "torch"),
    "imagededup, PHash": (imagededup_phash, "imagededup"),
    "imagededup, CNN": (imagededup_cnn, "imagededup"),
    "CleanVision": (cleanvision, "cleanvision"),
    "fastdup": (fastdup, "fastdup"),
}
TEXT_TOOLS: Tools = {
    "`find_copies`": (ours_text, "torch"),
    "datasketch, MinHash": (datasketch, "datasketch"),
    "SemHash, hashed words": (semhash, "semhash"),
}
