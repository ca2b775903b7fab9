"""Data of which it is known who is a copy, and who is merely more alike than the rest.

Shape suffixes: N samples, C channels, H W space, T time or tokens, F values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from pfb.lab.train.batches.augment import flip_and_crop
from pfb.lab.train.data.clips import frames


@dataclass(frozen=True)
class Goal:
    """What must hold of the shares kept where half of each batch is stopped.

    Attributes:
        auc: least area under the curve of copies against singles.
        group: least share kept of the group.
        most: most share kept of the group, of copies.
        rest: least share kept of the rest.
        above: the group is kept more often than the rest.
    """

    auc: float = 0.0
    group: float = 0.0
    most: float = 1.0
    rest: float = 0.0
    above: bool = False


@dataclass(frozen=True)
class Grouped:
    """Samples, and which of them are the group in question.

    Attributes:
        x: as the model gets them but for augmentation, ``[N, ...]``; images normalised.
        groups: ``[N]`` int64: 0 the rest, 1 the group, or the class, if no other group is known.
        goal: of group 1; of each class, where ``classes``.
        copies: group 1 are copies; else none is.
        augmented: images are mirrored and cropped at random.
        classes: ``groups`` are classes of which all are judged.
    """

    x: Tensor
    groups: Tensor
    goal: Goal
    copies: bool = False
    augmented: bool = False
    classes: bool = False

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Pictures:
    """Small distinct images ``[N, C, H, W]`` uint8 and their classes, of which groups are made."""

    images: Tensor
    labels: Tensor

    def some(self, n: int, generator: Generator) -> Tensor:
        """So many of them at random, as long as there are others none twice, uint8."""
        order = torch.cat([torch.randperm(len(self.images), generator=generator) for _ in range(-(-n // len(self)))])
        return self.images[order[:n]]

    def __len__(self) -> int:
        return len(self.images)


BRIGHTER = 0.05  # of the whole light: the band of a kind of sky
ALONE = Goal(group=0.40)  # of a group without copies: random keeps 0.50
COPIES = Goal(auc=0.98, most=0.28, rest=0.96)
"""40 frames of a clip: 0.26 / 0.98 is what the first scale that was tried kept."""


def normalised(images: Tensor) -> Tensor:
    """By the mean and deviation of each channel, float32."""
    x = images.float() / 255
    dims = [0, 2, 3]
    return (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True).clamp_min(1e-3)


def augment(x: Tensor) -> Tensor:
    """Mirrored or not, and cropped by up to an eighth; edges are reflected."""
    return flip_and_crop(x, True, crop=max(1, x.size(-1) // 8))


def _beside(group: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([group, rest]), torch.cat([torch.ones(len(group)), torch.zeros(len(rest))]).long()


def _smooth(n: int, channels: int, side: int, cells: int, g: Generator) -> Tensor:
    """Random pictures without detail, from 0 to 1."""
    coarse = torch.rand(n, channels, cells, cells, generator=g)
    return F.interpolate(coarse, side, mode="bicubic", align_corners=False).clamp(0, 1)


def _images(group: Tensor, rest: Tensor, goal: Goal, copies: bool = False, augmented: bool = True) -> Grouped:
    images, groups = _beside(group, rest)
    return Grouped(normalised(images), groups, goal, copies, augmented)


def clips(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """Two thirds are clips of 40 frames; the others, single pictures."""
    count = max(1, n * 2 // 3 // 40)
    shown = pictures.some(n - 39 * count, g)
    return _images(frames(shown[:count].repeat_interleave(40, 0), g), shown[count:], COPIES, copies=True)


def sky(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """30 % smooth pictures in shades of blue, none a copy, beside street."""
    some = n * 3 // 10
    seen, _ = skies(some, pictures.images.size(1), pictures.images.size(-1), 1, g)
    return _images(seen, pictures.some(n - some, g), ALONE)


def skies(n: int, channels: int, side: int, kinds: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Smooth pictures in shades of blue ``[n, C, side, side]`` uint8, and their kinds ``[n]``, of
    which each is brighter at a height of its own; one kind alone is not.
    """
    shade = torch.tensor([0.3, 0.5, 0.8])[:channels, None, None]
    light = shade + 0.5 * (_smooth(n, channels, side, 4, g) - 0.5)
    grain = 0.01 * torch.randn(light.shape, generator=g)
    kind = torch.randint(kinds, (n,), generator=g) if kinds > 1 else torch.zeros(n, dtype=torch.int64)
    if kinds > 1:
        height = torch.arange(side) * kinds // side
        light = light + BRIGHTER * (height == kind[:, None])[:, None, :, None]
    return _bytes(light + grain), kind


def night(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """5 % at a tenth of the light."""
    shown = pictures.some(n, g)
    some = n // 20
    return _images(_bytes(shown[:some].float() / 2550), shown[some:], ALONE)


def site(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """10 % of another camera: a colour cast, half of the contrast, and a fixed mount in view."""
    shown = pictures.some(n, g)
    some, channels, side = n // 10, shown.size(1), shown.size(-1)
    cast = torch.tensor([0.25, 0.15, 0.0])[:channels, None, None]
    seen = 0.5 * shown[:some].float() / 255 + cast + 0.2
    seen[..., side * 3 // 4 :, :] = 0.3 * seen[..., side * 3 // 4 :, :] + 0.4
    return _images(_bytes(seen), shown[some:], ALONE)


def chirps(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """28 % spectrograms of tones that rise or fall, all different, beside background noise."""
    some, height, width = n * 28 // 100, 32, 64
    rise, base, width_N, loud, start, bend = (torch.rand(some, 1, 1, generator=g) for _ in range(6))
    t, f = torch.linspace(0, 1, width)[None, None], torch.linspace(0, 1, height)[None, :, None]
    pitch = 0.1 + 0.8 * base + (2 * rise - 1) * 0.6 * (t - 0.5) + (bend - 0.5) * (t - 0.5).square()
    length = 0.4 + 0.6 * width_N
    on = ((t > 0.5 * start * (1 - length)) & (t < 0.5 * start * (1 - length) + length)).float()
    tone = (1 + 2 * loud) * torch.exp(-0.5 * ((f - pitch) / (0.02 + 0.04 * width_N)).square()) * on
    quiet = 0.1 * torch.randn(some, height, width, generator=g)
    noise = torch.randn(n - some, height, width, generator=g)
    noise = noise * (0.5 + torch.rand(n - some, 1, 1, generator=g))
    tilt = (2 * torch.rand(n - some, 1, 1, generator=g) - 1) * (f - 0.5)
    x, groups = _beside(tone + quiet, noise + 2 * tilt)
    return Grouped(x[:, None], groups, ALONE)


def cluster(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """5 % vectors that are five times as alike as the rest."""
    some = n // 20
    x = torch.randn(n, 16, generator=g)
    return Grouped(*_beside(2 + 0.2 * x[:some], x[some:]), ALONE)


def far_clusters(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """Clusters that lie so far apart that within each all are alike; in each, half are copies."""
    centers = 10 * torch.randn(12, 16, generator=g)
    single = torch.randn(n // 2, 16, generator=g) + centers[torch.randint(12, (n // 2,), generator=g)]
    first = torch.randn(n // 40 + 1, 16, generator=g) + centers[torch.randint(12, (n // 40 + 1,), generator=g)]
    copies = first.repeat_interleave(20, 0)[: n - n // 2]
    copies = copies + 0.02 * torch.randn(copies.shape, generator=g)
    return Grouped(*_beside(copies, single), Goal(auc=0.95), copies=True)


def rare_level(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """Six numbers and a category as one-hot columns: 6 levels, and 40 rare ones, which are 4 %."""
    level = torch.multinomial(torch.tensor([0.16] * 6 + [0.001] * 40), n, replacement=True, generator=g)
    x = torch.cat([torch.randn(n, 6, generator=g), F.one_hot(level, 46).float()], 1)
    return Grouped(x, (level >= 6).long(), ALONE)


def fraud(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """2 % lie apart from the rest in four of twenty columns, of which one is of large scale."""
    some = max(2, n // 50)
    x = torch.randn(n, 20, generator=g)
    x[:some, :4] += torch.tensor([8.0, -8.0, 8.0, -8.0])
    x[:, 4] *= 1e5
    return Grouped(*_beside(x[:some], x[some:]), ALONE)


def faults(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """Machines: 80 % idle, 18 % at work, and 2 % faults: vibration, each of its own pitch."""
    some, idle, t = max(2, n // 50), n * 8 // 10, torch.linspace(0, 1, 64)[None, :, None]
    gain, phase = torch.rand(n, 1, 4, generator=g), torch.rand(n, 1, 4, generator=g)
    x = 0.05 * torch.randn(n, 64, 4, generator=g) + torch.tensor([1.0, 0.5, 0.2, 0.8])
    pitch = 5 + 10 * torch.rand(n, 1, 1, generator=g)
    vibration = (0.1 + 0.3 * gain) * (6.28 * (pitch * t + phase)).sin()
    x[:some] += vibration[:some]
    work = slice(some, n - idle)
    x[work] += (1 + gain[work]) * (6.28 * ((1 + 3 * gain[work]) * t + phase[work])).sin()
    return Grouped(*_beside(x[:some], x[some:]), ALONE)


def events(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """8 still cameras; in 4 % of the frames something of a twelfth of the picture is seen."""
    scenes = pictures.some(8, g)
    shown = frames(scenes[torch.randint(8, (n,), generator=g)], g, shift=0)
    some, side = n // 25, shown.size(-1)
    size = max(2, side * 9 // 32)
    things = pictures.some(some, g)
    for i, (top, left) in enumerate(torch.randint(side - size + 1, (some, 2), generator=g).tolist()):
        shown[i, :, top : top + size, left : left + size] = things[i, :, :size, :size]
    return _images(shown[:some], shown[some:], Goal(group=0.40, above=True), augmented=False)


def defects(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """Inspection: textures of one kind, in 2 % a scratch of 3 to 12 pixels, each of its own
    length, width, direction, and light.
    """
    some, side = max(2, n // 50), 32
    texture = 0.5 + 0.1 * torch.sin(torch.arange(side) / 1.5)[None, None, :, None]
    x = texture + 0.05 * (_smooth(n, 1, side, 8, g) - 0.5) + 0.02 * torch.randn(n, 1, side, side, generator=g)
    top, left = torch.randint(side - 12, (2, some), generator=g).tolist()
    lengths, widths = torch.randint(3, 13, (some,), generator=g), torch.randint(1, 3, (some,), generator=g)
    lights, upright = torch.rand(some, generator=g).tolist(), torch.rand(some, generator=g) < 0.5
    high, wide = torch.where(upright, lengths, widths).tolist(), torch.where(upright, widths, lengths).tolist()
    for i, light in enumerate(lights):
        x[i, :, top[i] : top[i] + high[i], left[i] : left[i] + wide[i]] = light
    return _images(_bytes(x[:some]), _bytes(x[some:]), Goal(group=0.40, above=True), augmented=False)


def distinct(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """Plain pictures of several classes, none a copy."""
    order = torch.randperm(len(pictures), generator=g)[:n]
    x, labels = normalised(pictures.images[order]), pictures.labels[order]
    return Grouped(x, labels, Goal(group=0.42), augmented=True, classes=True)


def templates(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """Texts of 40 tokens: half are of 30 templates, from which each differs in 2 to 4 tokens."""
    some = n // 2
    first = torch.randint(5000, (30, 40), generator=g)
    x = first[torch.arange(some) % 30].clone()
    changes = torch.randint(2, 5, (some, 1), generator=g)
    changed = torch.rand(some, 40, generator=g).argsort(1) < changes
    x = torch.where(changed, torch.randint(5000, x.shape, generator=g), x)
    rest = torch.randint(5000, (n - some, 40), generator=g)
    return Grouped(*_beside(x, rest), Goal(auc=0.98, most=0.28), copies=True)


def chats(n: int, pictures: Pictures, g: Generator) -> Grouped:
    """Texts of 140 tokens, all different but for the first 100 of one in ten: a shared prompt."""
    x = torch.randint(5000, (n, 140), generator=g)
    x[: n // 10, :100] = torch.randint(5000, (100,), generator=g)
    groups = torch.zeros(n, dtype=torch.int64)
    groups[: n // 10] = 1
    return Grouped(x, groups, ALONE)


GROUPS: dict[str, Callable[[int, Pictures, Generator], Grouped]] = {
    made.__name__.replace("_", " "): made
    for made in (
        *(clips, far_clusters, templates, chats, cluster, sky, night, site),
        *(faults, chirps, rare_level, fraud, events, defects, distinct),
    )
}
"""By name."""


def _bytes(x: Tensor) -> Tensor:
    return (255 * x).round().clamp(0, 255).to(torch.uint8)
