"""Pictures that look like scenes, and frames of them as a camera would take them."""

import torch
from PIL import Image


def picture(generator):
    """``[3, 16, 16]`` in 0 to 255."""
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=16, mode="bicubic")[0].clamp(0, 1) * 255


def save_frame(place, x, generator):
    """With noise of its own."""
    place.parent.mkdir(parents=True, exist_ok=True)
    noisy = (x + 2 * torch.randn(x.shape, generator=generator)).round().clamp(0, 255).to(torch.uint8)
    Image.fromarray(noisy.permute(1, 2, 0).numpy()).save(place)
