"""A stream: shards in tar files, read one after the other, shuffled in a buffer. No sample has an
index, and nothing here knows how many there are.

With the package ``webdataset`` its pipeline reads the shards; without it the few lines of
``Shards`` do. A stream has no length, so a window is told its steps.
"""

import importlib.util
import io
import random
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms.v2 import functional as images

import pfb


def write_shards(folder: Path, shards: int, per_shard: int) -> list[str]:
    """Tar files with ``KEY.png`` and ``KEY.cls`` of each sample, as webdataset has them."""
    paths = []
    for shard in range(shards):
        paths.append(str(folder / f"train-{shard:04}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for number in range(per_shard):
                label = int(torch.randint(2, ()))
                pixels = torch.randint(0, 100, (16, 16, 3), dtype=torch.uint8)
                pixels[:, 8 * label : 8 * label + 8] += 100  # the bright half is the class
                png = io.BytesIO()
                Image.fromarray(pixels.numpy()).save(png, "png")
                for ending, content in (("png", png.getvalue()), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{shard:04}{number:06}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return paths


class Shards(IterableDataset[tuple[Tensor, int]]):
    """The samples of tar files, through a buffer that shuffles."""

    def __init__(self, paths: list[str], buffer: int = 100) -> None:
        self.paths, self.buffer = paths, buffer

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        held: list[tuple[Tensor, int]] = []
        for sample in self._in_order():
            held.append(sample)
            if len(held) > self.buffer:
                yield held.pop(random.randrange(len(held)))
        random.shuffle(held)
        yield from held

    def _in_order(self) -> Iterator[tuple[Tensor, int]]:
        for path in random.sample(self.paths, len(self.paths)):
            with tarfile.open(path) as tar:
                files = {member.name: tar.extractfile(member) for member in tar}
                for key in sorted({name.partition(".")[0] for name in files}):
                    png, label = (files[f"{key}.{ending}"] for ending in ("png", "cls"))
                    if png is not None and label is not None:  # or it is no file
                        yield images.to_dtype(images.pil_to_tensor(Image.open(png)), scale=True), int(label.read())


def loader(paths: list[str], with_webdataset: bool) -> Any:
    """Batches ``[64, 3, 16, 16]`` and ``[64]``."""
    if not with_webdataset:
        return DataLoader(Shards(paths), batch_size=64)
    import webdataset

    stream = webdataset.WebDataset(paths, shardshuffle=len(paths), empty_check=False).shuffle(100)
    return DataLoader(stream.decode("torchrgb").to_tuple("png", "cls"), batch_size=64)


def main(epochs: int = 3, with_webdataset: bool | None = None) -> tuple[float, pfb.BatchPruner]:
    torch.manual_seed(0)
    random.seed(0)
    if with_webdataset is None:
        with_webdataset = importlib.util.find_spec("webdataset") is not None
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(256, 2)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule, memory = pfb.window(0.4, stop=0.9), pfb.NeighbourMemory(170)  # at most a third of an epoch
    with tempfile.TemporaryDirectory() as folder:
        stream = loader(write_shards(Path(folder), shards=4, per_shard=128), with_webdataset)
        batches = pfb.prune_batches(stream, schedule, total_steps=epochs * 8, density=memory)  # the line
        for _ in range(epochs):
            for x, y in batches:
                logits = model(x)
                F.cross_entropy(logits, y).backward()
                optimizer.step()
                optimizer.zero_grad()
    accuracy = (logits.argmax(1) == y).float().mean().item()
    reader = "webdataset" if with_webdataset else "tarfile"
    print(f"{batches.pruner.steps} steps on a stream read by {reader}; accuracy on the last batch {accuracy:.1%}")
    return accuracy, batches.pruner


if __name__ == "__main__":
    main()
