"""One image file, as the pixels a person sees."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from pfb.lab import files
from pfb.lab.errors import RunError, printable

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "AVIF",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "JPEG2000",
    "PPM",
    "TGA",
    "ICO",
    "PCX",
    "SGI",
    "QOI",
)
"""Of Pillow's. The others are no images (HDF5, GRIB, MPEG) or programs that others run (EPS), or
nobody trains on them.
"""
MOST_PIXELS = 50_000_000
"""That are decoded of one image, some 150 MB; twice as many would take a gigabyte on the way."""

Image.init()
OPENED = tuple(kind for kind in FORMATS if kind in Image.OPEN)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the limit above is lower


def endings() -> frozenset[str]:
    """Endings of the files that are images, in lower case."""
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in OPENED)


def size(file: str | Path) -> tuple[int, int]:
    """Width and height of the file's image; raises as :func:`read`."""
    with _opened(file) as image:
        return image.size


def read(file: str | Path) -> Image.Image:
    """The file's image in RGB, turned as its EXIF orientation says; the first one of an animation.

    Of gray values of 16 bits the upper 8 are taken, as Pillow does for those of colors; without
    that they would be clipped to white. An alpha channel is left out. A photograph (JPEG) of more
    than 50 million pixels is read at half its size.

    Raises:
        RunError: the file is damaged or no image, has too many pixels, or its values have no known
            range.
    """
    with _opened(file) as image:
        # Of a progressive one all would be kept in memory on the way.
        in_parts = isinstance(image, JpegImageFile) and not image.info.get("progressive")
        if image.width * image.height > MOST_PIXELS and in_parts:
            image.draft(image.mode, (image.width // 2, image.height // 2))
        if image.width * image.height > MOST_PIXELS:
            raise RunError(
                f"{printable(str(file))} has {image.width:,} x {image.height:,} pixels, more than the {MOST_PIXELS:,} "
                "that are read of one image; shrink or remove it"
            )
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format in ("PPM", "PNG")):
            return Image.fromarray((np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
        if upright.mode in ("I", "F"):
            raise RunError(
                f"{printable(str(file))} has values of 32 bits ({upright.mode}), of which nobody knows what is white; "
                "convert it to 8 or 16 bits"
            )
        return upright.convert("RGB")


@contextlib.contextmanager
def _opened(file: str | Path) -> Iterator[Image.Image]:
    try:
        with files.reading(Path(file)) as content, Image.open(content, formats=OPENED) as image:
            yield image
    except RunError:
        raise
    except Exception as error:  # whatever a decoder raises
        said = printable(str(error) or type(error).__name__)
        raise RunError(f"{printable(str(file))} cannot be read ({said}); repair or remove it") from error
