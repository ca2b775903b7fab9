"""One image file, as the pixels a person sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pfb.lab.errors import RunError


def endings() -> frozenset[str]:
    """Endings of the files that Pillow can open, in lower case."""
    Image.init()
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def read(file: str | Path) -> Image.Image:
    """The file's image in RGB, turned as its EXIF orientation says; the first one of an animation.

    Of gray values of 16 bits the upper 8 are taken, as Pillow does for those of colors; without
    that they would be clipped to white. An alpha channel is left out.

    Raises:
        RunError: the file is damaged or no image, or its values have no known range.
    """
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format in ("PPM", "PNG")):
                return Image.fromarray((np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
            if upright.mode in ("I", "F"):
                raise RunError(
                    f"{file} has values of 32 bits ({upright.mode}), of which nobody knows what is white; "
                    "convert it to 8 or 16 bits"
                )
            return upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RunError(f"{file} cannot be read ({error}); repair or remove it") from error
