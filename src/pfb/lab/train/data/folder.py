"""Image folders in the layout of ImageNet: ``PATH/train/CLASS/IMAGE`` and ``PATH/val/CLASS/IMAGE``
(or ``test``), or without a test set, which is split off then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pfb.lab.errors import RunError, printable
from pfb.lab.train.data import pixels
from pfb.lab.train.data.images import SMALL_IMAGE, class_balanced, in_memory
from pfb.lab.train.data.source import InMemory, Source
from pfb.lab.train.data.split import by_groups, copies_among, linked
from pfb.lab.train.methods import method_of
from pfb.lab.train.options.config import TrainConfig

logger = logging.getLogger(__name__)

LARGE_IMAGE = 224
THUMBNAIL = 32
SKETCHED = 256  # images at a time
LONGEST = 20
"""Sides of an image have at most this ratio when it is cropped."""
SHOWN = 20
"""So many damaged files are named."""
Files = list[tuple[str, int]]
"""A path and its class, for each image."""


def load(root: Path, config: TrainConfig) -> Source:
    """A source of the images under ``root``, in memory if they are small.

    Raises:
        RunError: a folder is missing, a class is empty or of the test set only, there is but one
            class, or images cannot be read.
    """
    train_root, test_root = _roots(root, config.split)
    classes = _classes(train_root)
    if len(classes) < 2:
        deeper = _folders(train_root / classes[0])
        hint = f". Are the classes one level deeper ({', '.join(deeper[:3])})? Move them up" if len(deeper) > 1 else ""
        raise RunError(
            f"{train_root} needs at least two classes (got {classes[0]!r} only): of one there is no choice{hint}"
        )
    train_files = _files(train_root, classes)
    if test_root is None:
        train_files, test_files = _split(train_files)
    else:
        if foreign := sorted(set(_classes(test_root)) - set(classes)):
            raise RunError(
                f"{test_root} holds classes that {train_root} does not: {', '.join(map(printable, foreign[:5]))}"
            )
        test_files = _files(test_root, classes)
    if config.train_samples is not None:
        labels = torch.tensor([label for _, label in train_files])
        train_files = [train_files[i] for i in class_balanced(labels, config.train_samples, len(classes)).tolist()]
    side = config.image_size or _usual_side(train_files)
    if side <= SMALL_IMAGE:
        source = in_memory(_decoded(train_files, side), _decoded(test_files, side), classes, config.augment)
    else:
        source = _on_disk(train_files, test_files, classes, side, config)
    return dataclasses.replace(source, names=[str(Path(file).relative_to(root)) for file, _ in train_files])


def small(files: Files) -> Iterator[Tensor]:
    """Whole images as they are sketched, ``[N, 3, 32, 32]``, read a part at a time.

    Raises:
        RunError: images cannot be read.
    """
    for start in range(0, len(files), SKETCHED):
        yield _decoded(files[start : start + SKETCHED], SMALL_IMAGE).images.float() / 255


def _roots(root: Path, split: str) -> tuple[Path, Path | None]:
    """The folders of the training and of the test set; ``None`` if that is split off."""
    test_root = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if split == "groups":
        if test_root is not None:
            raise RunError(f"--split groups is for images without a test set (got {test_root}): leave it out")
        train_root = root / "train"
        train_root = train_root if train_root.is_dir() else root
    else:
        train_root, test_root = root / "train", test_root or root / "test"
    for folder in (root, train_root, test_root):
        if folder is not None and not folder.is_dir():
            raise RunError(
                f"--data imagefolder:{root} needs the folders train/ and test/ (or val/); {folder} is missing. Of "
                f"images without a test set --split groups sets one aside.{_how_to_split(root)}"
            )
    return train_root, test_root


def _split(files: Files) -> tuple[Files, Files]:
    train, test = by_groups(
        linked(copies_among(small(files), images=True)), torch.tensor([label for _, label in files])
    )
    if not test:
        raise RunError("--split groups: every class is a single group of near-copies, so that none is left to test on")
    return [files[i] for i in train], [files[i] for i in test]


def _folders(place: Path) -> list[str]:
    """Names of the folders in one, without those that a system or an editor leaves behind."""
    found = place.iterdir() if place.is_dir() else ()
    return sorted(p.name for p in found if not _is_litter(p.name) and p.is_dir())


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in ("@eaDir", "__MACOSX")


def _classes(folder: Path) -> list[str]:
    if not (classes := _folders(folder)):
        raise RunError(f"{folder} holds no class folders; expected {folder}/CLASS/IMAGE")
    return classes


def _how_to_split(root: Path) -> str:
    """What to do about images that nobody has split yet."""
    if (root / "train").is_dir():
        return f" Move a tenth or so of each class there: {root}/train/CLASS/IMAGE to {root}/test/CLASS/IMAGE"
    if len(classes := _folders(root)) > 1:
        shown = ", ".join(map(printable, classes[:3]))
        return f" If {shown} are the classes, move most images of each to {root}/train/CLASS, the others to test/CLASS"
    return ""


def _files(folder: Path, classes: list[str]) -> Files:
    """All images of those classes that have a folder; what lies beside them is told."""
    images = pixels.endings()
    files: Files = []
    others, links = Counter[str](), list[str]()
    present = {name: label for label, name in enumerate(classes) if (folder / name).is_dir()}
    met = {_identity(place) for place in (folder, *folder.parents)}
    for name, label in present.items():
        found = []
        for place, names in sorted(_walk(folder / name, folder.resolve(), met, links)):
            for path in (f"{place}/{file}" for file in sorted(names) if not _is_litter(file)):
                ending = Path(path).suffix.lower()
                if ending not in images:
                    others[ending or "none"] += 1
                elif os.path.isfile(path) or not os.path.exists(path):  # a link to nothing is damaged
                    found.append((path, label))
                else:
                    others["pipes and devices"] += 1
        if not found:
            raise RunError(
                f"{printable(str(folder / name))} holds no images that can be read, or is a link to a folder that was "
                "read already; remove the folder or fill it"
            )
        files += found
    if others:
        logger.warning(
            "%s: %d files are skipped, no image has their ending: %s",
            folder,
            others.total(),
            ", ".join(f"{printable(kind)} ({count})" for kind, count in sorted(others.items())),
        )
    if links:
        logger.warning("%s: %d links back into it are not followed: %s", folder, len(links), printable(links[0]))
    return files


def _walk(place: Path, root: Path, met: set[tuple[int, int]], links: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each folder below a place, once, and the names of the files in it.

    Args:
        place: where to begin.
        root: a link to what it holds, or to what holds it, is not followed but noted.
        met: the folders that were seen; grows.
        links: those not followed; grows.
    """
    if (identity := _identity(place)) in met:
        return
    met.add(identity)
    for at, folders, names in os.walk(place, onerror=_refuse, followlinks=True):
        yield at, names
        kept = []
        for folder in (Path(at, name) for name in folders if not _is_litter(name)):
            real = folder.resolve() if folder.is_symlink() else None
            if real is not None and (real.is_relative_to(root) or root.is_relative_to(real)):
                links.append(str(folder))
            elif (identity := _identity(folder)) not in met:
                met.add(identity)
                kept.append(folder.name)
        folders[:] = kept


def _refuse(error: OSError) -> None:
    raise error


def _identity(place: Path) -> tuple[int, int]:
    found = place.stat()
    return found.st_dev, found.st_ino


def _usual_side(files: Files) -> int:
    """The first image's larger side if it is small, else 224."""
    for file, _ in files:
        with contextlib.suppress(RunError):  # it is named together with all others when they are read
            side = max(pixels.size(file))
            return side if side <= SMALL_IMAGE else LARGE_IMAGE
    return SMALL_IMAGE


def _decoded(files: Files, side: int) -> InMemory:
    images = torch.empty(len(files), 3, side, side, dtype=torch.uint8)
    damaged = []
    for i, (file, _) in enumerate(files):
        try:
            image = pixels.read(file)
        except RunError as error:
            damaged.append(str(error))
            continue
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BILINEAR)
        images[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if damaged:
        more = [f"and {len(damaged) - SHOWN} more"] if len(damaged) > SHOWN else []
        shown = "\n  ".join([*damaged[:SHOWN], *more])
        raise RunError(f"{len(damaged)} of {len(files)} images cannot be read:\n  {shown}")
    return InMemory(images, torch.tensor([label for _, label in files]))


class OnDisk(Dataset[dict[str, Any]]):
    """Images that are read and transformed one by one in the loader's processes."""

    def __init__(
        self, files: Files, transform: Callable[[Any], Tensor], thumbnail: Callable[[Any], Tensor] | None = None
    ) -> None:
        self.files, self.transform, self.thumbnail = files, transform, thumbnail

    @functools.cached_property
    def labels(self) -> Tensor:
        return torch.tensor([label for _, label in self.files])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, label = self.files[index]
        image = pixels.read(file)
        item = {"input": self.transform(image), "label": label, "index": index}
        return item if self.thumbnail is None else {**item, "original": self.thumbnail(image)}


def _middle(image: Image.Image) -> Image.Image:
    """The middle of a strip, of which no crop takes more: enlarged until its short side is as long
    as the others', all of it might fill the memory.
    """
    across, along = (min(side, LONGEST * min(image.size)) for side in image.size)
    left, top = (image.width - across) // 2, (image.height - along) // 2
    return image if (across, along) == image.size else image.crop((left, top, left + across, top + along))


def _on_disk(train_files: Files, test_files: Files, classes: list[str], side: int, config: TrainConfig) -> Source:
    """As ImageNet is usually trained on: random resized crops and flips, tested on the center; a
    thumbnail of the whole image beside each, for a method that judges by it.
    """
    from torchvision.transforms import v2

    to_tensor = [v2.PILToTensor()]
    whole = [_middle, v2.Resize(round(side * 256 / 224)), v2.CenterCrop(side)]
    random = [_middle, v2.RandomResizedCrop(side), v2.RandomHorizontalFlip()]
    random += [v2.TrivialAugmentWide()] if config.policy == "ta_wide" else []
    random += [*to_tensor, *([v2.RandomErasing(config.erase)] if config.erase else [])]
    stored = config.augment and method_of(config.method).judges_stored
    thumbnail = v2.Compose([v2.Resize((THUMBNAIL, THUMBNAIL)), *to_tensor]) if stored else None
    train = OnDisk(train_files, v2.Compose(random if config.augment else [*whole, *to_tensor]), thumbnail)
    test = OnDisk(test_files, v2.Compose(whole + to_tensor))
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    def normalise(images: Tensor) -> Tensor:
        return (images.float() / 255 - mean.to(images.device)) / std.to(images.device)

    return Source(train, test, classes, 3, side, normalise, normalise, collate=None)
