"""How large and how sharp a sample is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
GREY = (0.299, 0.587, 0.114)


def size(sample: Any) -> tuple[int, int]:
    """Pixels and bytes of an image file, values of a tensor or array, or characters of a text.

    Raises:
        ValueError: something that has no size.

    Example:
        >>> size("a text"), size(torch.zeros(3, 4, 5))
        ((6, 0), (60, 0))
    """
    sample = _first(sample)
    if _is_file(sample):
        with _opened(sample) as image:
            return image.width * image.height, Path(sample).stat().st_size
    if isinstance(sample, str):
        return len(sample), 0
    if isinstance(shape := getattr(sample, "shape", None), tuple):
        return torch.Size(shape).numel(), 0
    if hasattr(sample, "width") and hasattr(sample, "height"):
        return sample.width * sample.height, 0
    raise ValueError(f"`samples` must be images, paths of image files or texts to have a size (got {_named(sample)})")


def sharpness(sample: Any) -> float:
    """Variance of the Laplacian of an image's grey values; larger is sharper, or noisier.

    Raises:
        ValueError: no image ``[C, H, W]`` or ``[H, W]`` and no path of one.

    Example:
        >>> edge = torch.zeros(8, 8)
        >>> edge[:, 4:] = 1
        >>> sharpness(edge) > sharpness(edge / 2) > sharpness(torch.zeros(8, 8))
        True
    """
    x_HW = _grey(_first(sample))
    kernel = x_HW.new_tensor(LAPLACIAN)[None, None]
    return float(F.conv2d(x_HW[None, None], kernel).var(correction=0))


def _first(sample: Any) -> Any:
    return sample[0] if isinstance(sample, (tuple, list)) and sample else sample


def _is_file(sample: Any) -> bool:
    return isinstance(sample, Path) or (isinstance(sample, str) and len(sample) < 4096 and Path(sample).is_file())


def _opened(place: Any) -> Any:
    from PIL import Image

    return Image.open(place)


def _grey(sample: Any) -> Tensor:
    if _is_file(sample):
        with _opened(sample) as image:
            sample = image.convert("L")
    if hasattr(sample, "convert"):  # of Pillow
        grey = sample.convert("L")
        return torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(grey.height, grey.width).float()
    if not isinstance(sample, Tensor) and hasattr(sample, "__array__"):
        sample = torch.as_tensor(sample)
    if isinstance(sample, Tensor) and sample.dim() == 3 and sample.size(-1) in (1, 3) and sample.size(0) not in (1, 3):
        sample = sample.movedim(-1, 0)
    if not isinstance(sample, Tensor) or sample.dim() not in (2, 3) or min(sample.shape[-2:]) < 3:
        raise ValueError(
            f"`samples` must be images [C, H, W] or [H, W] of at least 3 pixels a side, or paths of image files, to be "
            f"sharp (got {_named(sample)})"
        )
    x = sample.detach().float().cpu()
    if x.dim() == 2:
        return x
    return (x * x.new_tensor(GREY)[:, None, None]).sum(0) if len(x) == 3 else x.mean(0)


def _named(sample: Any) -> str:
    return f"shape {tuple(sample.shape)}" if isinstance(sample, Tensor) else repr(sample)[:60]
