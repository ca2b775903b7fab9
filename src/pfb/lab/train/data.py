"""Data by name. Small images are decoded once and kept in memory, so that loading never hides what
pruning saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pfb.lab.errors import RunError
from pfb.lab.train.augment import flip_and_crop
from pfb.lab.train.config import TrainConfig

Batch = dict[str, Tensor]

TEXT_LENGTH = 64  # bytes
SMALL_IMAGE = 64  # up to this side images are kept in memory, and a ResNet gets the CIFAR stem: 3x3, no max-pool


@dataclass(frozen=True)
class Source:
    """A task and its data.

    Attributes:
        train, test: data sets whose items, or whose ``__getitems__`` batches, are dicts ``input``,
            ``label``, ``index``.
        classes: names of the classes, or of the tokens.
        channels, image_size: of the images ``[C, S, S]``; for text 1 and the number of tokens.
        prepare_train, prepare_test: from a batch's input on the device to what the model takes.
        collate: the loader's collate function.
        task: what the labels are: a class per image, per pixel, or the next token.
    """

    train: Dataset[Any]
    test: Dataset[Any]
    classes: list[str]
    channels: int
    image_size: int
    prepare_train: Callable[[Tensor], Tensor]
    prepare_test: Callable[[Tensor], Tensor]
    collate: Callable[[Any], Batch] | None
    task: Literal["classification", "segmentation", "language"] = "classification"


class InMemory(Dataset[Batch]):
    """Images ``[N, C, H, W]`` uint8 or tokens ``[N, T]``, and labels ``[N, ...]``, fetched a batch
    at a time.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices)
        return {"input": self.images[index], "label": self.labels[index], "index": index}


class EpochSampler(Sampler[int]):
    """A random order of the training set that depends on seed and epoch alone, so that all methods
    see the same one.

    Attributes:
        only: the indices to load in this epoch; ``None`` for all.
    """

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seed = samples, seed
        self.epoch = 0
        self.only: Tensor | None = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def random_numbers(self, purpose: int = 0) -> torch.Generator:
        """Random numbers of this seed and epoch."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) * 16 + purpose)

    def __len__(self) -> int:
        return self.samples if self.only is None else len(self.only)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.samples, generator=self.random_numbers())
        if self.only is not None:
            loaded = torch.zeros(self.samples, dtype=torch.bool)
            loaded[self.only] = True
            order = order[loaded[order]]
        yield from order.tolist()


def load(config: TrainConfig) -> Source:
    """The data that ``--data`` names.

    Raises:
        RunError: unknown name, missing or empty folder, a class without images, or damaged images
            (all are listed).
    """
    name = config.data
    if name == "digits":
        train, test, classes = _digits()
        return _in_memory(train, test, classes, config, flip=False, crop=1)
    if name in ("cifar10", "cifar100"):
        train, test, classes = _cifar(name, config.data_root)
        return _in_memory(train, test, classes, config, flip=True, crop=4)
    if name == "shapes":
        return _shapes(config)
    if name == "text":
        return _text(config)
    if name.startswith("imagefolder:"):
        return _image_folder(Path(name.removeprefix("imagefolder:")).expanduser(), config)
    raise RunError(f"--data must be digits, cifar10, cifar100, shapes, text or imagefolder:PATH (got {name!r})")


def labels_of(dataset: Any) -> Tensor:
    """All labels of a data set that :func:`load` made, in its order."""
    return dataset.labels if isinstance(dataset, InMemory) else torch.tensor([label for _, label in dataset.files])


def _in_memory(
    train: InMemory, test: InMemory, classes: list[str], config: TrainConfig, flip: bool, crop: int
) -> Source:
    if config.train_samples is not None:
        chosen = _class_balanced(train.labels, config.train_samples, len(classes))
        train = InMemory(train.images[chosen], train.labels[chosen])
    pixels = train.images.float() / 255 if len(train) <= 10_000 else train.images[:10_000].float() / 255
    mean, std = pixels.mean((0, 2, 3))[:, None, None], pixels.std((0, 2, 3))[:, None, None].clamp_min(1e-3)

    def normalise(images: Tensor) -> Tensor:
        return (images.float() / 255 - mean.to(images.device)) / std.to(images.device)

    def augment(images: Tensor) -> Tensor:
        return flip_and_crop(normalise(images), flip, crop) if config.augment else normalise(images)

    _, channels, side, _ = train.images.shape
    return Source(train, test, classes, channels, side, augment, normalise, collate=_as_it_is)


def _as_it_is(x: Any) -> Any:
    return x


def _class_balanced(labels: Tensor, n: int, classes: int) -> Tensor:
    """Indices of the first samples of every class, ``n`` in all."""
    if n > len(labels):
        raise RunError(f"--train-samples must be at most the data set's size {len(labels)} (got {n})")
    rank_in_class = torch.zeros_like(labels)
    for c in range(classes):
        members = labels == c
        rank_in_class[members] = torch.arange(int(members.sum()))
    return torch.argsort(rank_in_class, stable=True)[:n].sort().values


def _digits() -> tuple[InMemory, InMemory, list[str]]:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(raw.target).to(torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:360], order[360:]
    names = [str(name) for name in raw.target_names]
    return InMemory(images[train], labels[train]), InMemory(images[test], labels[test]), names


def _shapes(config: TrainConfig) -> Source:
    """Generated pictures with their segmentation: discs, squares and triangles of any color on a
    noisy ground.
    """
    train, test = _draw_shapes(config.train_samples or 800, seed=0), _draw_shapes(200, seed=1)

    def normalise(images: Tensor) -> Tensor:
        return images.float() / 127.5 - 1

    classes = ["ground", "disc", "square", "triangle"]
    side = train.images.size(-1)
    return Source(train, test, classes, 3, side, normalise, normalise, _as_it_is, task="segmentation")


def _draw_shapes(n: int, seed: int, side: int = 64) -> InMemory:
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    images = (torch.rand(n, 3, 1, 1, generator=g) + 0.15 * torch.randn(n, 3, side, side, generator=g)).clamp(0, 1)
    masks = torch.zeros(n, side, side, dtype=torch.int64)
    for _ in range(3):
        kind = torch.randint(1, 4, (n, 1, 1), generator=g)
        radius = torch.randint(6, 14, (n, 1, 1), generator=g)
        top, left = (torch.randint(8, side - 8, (n, 1, 1), generator=g) for _ in range(2))
        dy, dx = y - top, x - left
        disc = dy**2 + dx**2 <= radius**2
        square = torch.maximum(dy.abs(), dx.abs()) <= radius
        triangle = (dy <= radius) & (2 * dx.abs() <= dy + radius)
        inside = torch.where(kind == 1, disc, torch.where(kind == 2, square, triangle))
        masks = torch.where(inside, kind, masks)
        color = torch.rand(n, 3, 1, 1, generator=g)
        images = torch.where(inside[:, None], 0.8 * color + 0.2 * images, images)
    return InMemory((images * 255).to(torch.uint8), masks)


def _text(config: TrainConfig) -> Source:
    """Bytes of the documentation inside Python's standard library, in pieces; the label of a byte
    is the next one.
    """
    pieces = _standard_library_text().unfold(0, TEXT_LENGTH + 1, TEXT_LENGTH)
    cut = round(0.9 * len(pieces))
    train_pieces, test_pieces = pieces[:cut], pieces[cut:][:1000]
    if config.train_samples is not None:
        if config.train_samples > cut:
            raise RunError(f"--train-samples must be at most the data set's size {cut} (got {config.train_samples})")
        train_pieces = train_pieces[torch.linspace(0, cut - 1, config.train_samples).long()]
    train, test = (InMemory(p[:, :-1].clone(), p[:, 1:].clone()) for p in (train_pieces, test_pieces))
    names = [repr(chr(byte)) for byte in range(128)]
    return Source(train, test, names, 1, TEXT_LENGTH, _as_it_is, _as_it_is, _as_it_is, task="language")


def _standard_library_text(limit: int = 2_000_000) -> Tensor:
    """ASCII codes of the docstrings of the standard library's modules, in the order of
    their names.
    """
    import ast
    import sysconfig

    text, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (doc := ast.get_docstring(node)):
                text.append(doc)
                size += len(doc) + 2
        if size > limit:
            break
    encoded = "\n\n".join(text).encode("ascii", errors="replace")[:limit]
    return torch.frombuffer(bytearray(encoded), dtype=torch.uint8).long()


def _cifar(name: str, root: Path) -> tuple[InMemory, InMemory, list[str]]:
    import torchvision

    kind = torchvision.datasets.CIFAR10 if name == "cifar10" else torchvision.datasets.CIFAR100
    try:
        parts = [kind(root, train=train, download=not any(root.glob("cifar-*"))) for train in (True, False)]
    except Exception as error:
        raise RunError(
            f"{name} is not in {root} and could not be downloaded ({error}). Put its archive there, or use "
            "--data imagefolder:PATH"
        ) from error
    train, test = (
        InMemory(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return train, test, list(parts[0].classes)


def _image_folder(root: Path, config: TrainConfig) -> Source:
    train_root = root / "train"
    test_root = next((root / name for name in ("test", "val") if (root / name).is_dir()), root / "test")
    for folder in (root, train_root, test_root):
        if not folder.is_dir():
            raise RunError(
                f"--data imagefolder:{root} needs the folders train/ and test/ (or val/); {folder} is missing"
            )
    train_files, classes = _files_by_class(train_root)
    test_files, test_classes = _files_by_class(test_root)
    if foreign := sorted(set(test_classes) - set(classes)):
        raise RunError(f"{test_root} holds classes that {train_root} does not: {', '.join(foreign[:5])}")
    renumbered = [classes.index(c) for c in test_classes]
    test_files = [(file, renumbered[label]) for file, label in test_files]
    if config.train_samples is not None:
        chosen = _class_balanced(torch.tensor([label for _, label in train_files]), config.train_samples, len(classes))
        train_files = [train_files[i] for i in chosen.tolist()]
    side = config.image_size or _usual_size(train_files[0][0])
    if side <= SMALL_IMAGE:
        train, test = _decoded(train_files, side), _decoded(test_files, side)
        return _in_memory(train, test, classes, _without_subset(config), flip=True, crop=max(1, side // 8))
    return _from_disk(train_files, test_files, classes, side, config)


def _without_subset(config: TrainConfig) -> TrainConfig:
    import dataclasses

    return dataclasses.replace(config, train_samples=None)


def _files_by_class(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
    if not classes:
        raise RunError(f"{folder} holds no class folders; expected {folder}/CLASS/IMAGE")
    endings = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
    files = []
    for label, name in enumerate(classes):
        of_class = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in endings)
        if not of_class:
            raise RunError(
                f"{folder / name} holds no images ({', '.join(sorted(endings))}); remove the folder or fill it"
            )
        files += [(file, label) for file in of_class]
    return files, classes


def _usual_size(file: Path) -> int:
    with Image.open(file) as image:
        return max(image.size) if max(image.size) <= SMALL_IMAGE else 224


def _decoded(files: list[tuple[Path, int]], side: int) -> InMemory:
    images = torch.empty(len(files), 3, side, side, dtype=torch.uint8)
    damaged = []
    for i, (file, _) in enumerate(files):
        try:
            with Image.open(file) as image:
                pixels = image.convert("RGB")
                pixels = (
                    pixels if pixels.size == (side, side) else pixels.resize((side, side), Image.Resampling.BILINEAR)
                )
                images[i] = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
            damaged.append(file)
    if damaged:
        shown = "\n  ".join(str(file) for file in damaged[:20])
        more = f"\n  and {len(damaged) - 20} more" if len(damaged) > 20 else ""
        raise RunError(f"{len(damaged)} of {len(files)} images cannot be read; repair or remove them:\n  {shown}{more}")
    return InMemory(images, torch.tensor([label for _, label in files]))


class _OnDisk(Dataset[dict[str, Any]]):
    """Images that are read and transformed one by one in the loader's processes."""

    def __init__(self, files: list[tuple[Path, int]], transform: Callable[[Any], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, label = self.files[index]
        try:
            with Image.open(file) as image:
                pixels = self.transform(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise RunError(f"{file} cannot be read ({error}); repair or remove it") from error
        return {"input": pixels, "label": label, "index": index}


def _from_disk(
    train_files: list[tuple[Path, int]],
    test_files: list[tuple[Path, int]],
    classes: list[str],
    side: int,
    config: TrainConfig,
) -> Source:
    from torchvision.transforms import v2

    to_tensor = [v2.PILToTensor()]
    whole = [v2.Resize(round(side * 256 / 224)), v2.CenterCrop(side)]
    random = [v2.RandomResizedCrop(side), v2.RandomHorizontalFlip()]
    train = _OnDisk(train_files, v2.Compose((random if config.augment else whole) + to_tensor))
    test = _OnDisk(test_files, v2.Compose(whole + to_tensor))
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    def normalise(images: Tensor) -> Tensor:
        return (images.float() / 255 - mean.to(images.device)) / std.to(images.device)

    return Source(train, test, classes, 3, side, normalise, normalise, collate=None)
