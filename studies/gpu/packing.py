"""CIFAR-10 small enough to travel.

60,000 images as arrays are 184 MB; the JPEG files that they come in, behind each other and
compressed once more, since their headers are alike, 19 MB. So they are packed as these, and
decoded, in seconds, where they are used.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

FILE = "cifar10-jpeg.npz"
SIDE = 32
CHUNK = 500


def pack(folder: Path, data: Path) -> Path:
    """Write the images of ``folder/{train,test}/CLASS/*.jpg`` as one file into ``data``.

    Raises:
        FileNotFoundError: there are none.
    """
    classes = sorted(p.name for p in folder.glob("train/*") if p.is_dir())
    train, test = (
        [(path, i) for i, name in enumerate(classes) for path in sorted((folder / part / name).glob("*.jpg"))]
        for part in ("train", "test")
    )
    if not (train and test):
        raise FileNotFoundError(f"{folder} must hold train/CLASS/*.jpg and test/CLASS/*.jpg")
    files = [path.read_bytes() for path, _ in (*train, *test)]
    data.mkdir(parents=True, exist_ok=True)
    np.savez(
        data / FILE,
        jpeg=np.frombuffer(lzma.compress(b"".join(files)), dtype=np.uint8),
        ends=np.cumsum([len(file) for file in files]),
        labels=np.array([i for _, i in (*train, *test)], dtype=np.uint8),
        train=np.array(len(train)),
    )
    return data / FILE


def decode(data: Path, threads: int = 8) -> Path:
    """Decode what :func:`pack` wrote into a temporary folder, unless it lies there.

    Returns:
        That folder: ``images.npy``, uint8 ``[N, 3, 32, 32]``; ``labels.npz`` with ``labels`` and
        ``train``, how many of them, the first ones, are for training.

    Raises:
        FileNotFoundError: nothing was packed there.
    """
    if not (data / FILE).exists():
        raise FileNotFoundError(
            f"{data} holds no {FILE}: write it with `python -m studies gpu --pack FOLDER --data {data}`"
        )
    digest = hashlib.blake2b((data / FILE).read_bytes(), digest_size=8).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"pfb-gpu-{os.getuid()}-{digest}"
    if (folder / "ready").exists():
        return folder
    packed = np.load(data / FILE)
    jpeg, ends = lzma.decompress(packed["jpeg"].tobytes()), packed["ends"].tolist()
    images = np.empty((len(ends), 3, SIDE, SIDE), dtype=np.uint8)

    def decode_some(first: int) -> None:
        from PIL import Image

        for i in range(first, min(first + CHUNK, len(ends))):
            file = io.BytesIO(jpeg[ends[i - 1] if i else 0 : ends[i]])
            images[i] = np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode_some, range(0, len(ends), CHUNK)))
    folder.mkdir(exist_ok=True)
    np.save(folder / "images.npy", images)
    np.savez(folder / "labels.npz", labels=packed["labels"], train=packed["train"])
    (folder / "ready").touch()
    return folder
