"""The page of ``pfb advise``: what was found, and what near-copies look like."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import pfb
from pfb.lab.errors import printable
from pfb.lab.train.data import Source

GROUPS = 24
MEMBERS = 8  # of a group, that are shown
SIDE = 96  # pixels


@dataclass(frozen=True)
class Member:
    """A sample on the page: a picture (base64 of a PNG) or a text, its name and class."""

    picture: str
    text: str
    name: str
    label: str


@dataclass(frozen=True)
class Group:
    """Near-copies of each other; the first is the one to keep."""

    size: int
    members: tuple[Member, ...]


def pictured(groups: tuple[tuple[int, ...], ...], source: Source) -> list[Group]:
    """The largest groups, with the first of their samples."""
    return [Group(len(g), tuple(_member(i, source) for i in g[:MEMBERS])) for g in groups[:GROUPS]]


def html(advice: pfb.Advice, subject: str, source: Source) -> str:
    """The page ``advice.html.j2``, in one file: the advice, the largest groups of near-copies, and
    what the default keeps least often though it has no copy.
    """
    groups = pictured(advice.groups, source)
    least = () if advice.shares is None else advice.shares.least_kept
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("pfb.lab.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return templates.get_template("advice.html.j2").render(
        advice=advice,
        subject=printable(subject),
        groups=groups,
        more=len(advice.groups) - len(groups),
        alone=[_member(i, source) for i in least],
    )


def _member(i: int, source: Source) -> Member:
    item: Any = source.train[i]
    x, y = (item["input"][0], item["label"][0]) if source.collate is not None else (item["input"], item["label"])
    label = printable(source.classes[int(y)]) if source.task == "classification" else ""
    name = printable(source.names[i]) if source.names else f"sample {i}"
    if source.task == "language":
        return Member("", "".join(map(chr, x.tolist())), name, label)
    return Member(base64.b64encode(_png(x)).decode(), "", name, label)


def _png(image: Tensor) -> bytes:
    """Of an image ``[C, H, W]`` of bytes; gray if it has other channels than three."""
    pixels = image.to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else np.ascontiguousarray(pixels[:, :, 0]))
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
