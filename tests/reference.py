"""The method written out literally, in float64 and with loops over samples and centers: what the
fast code must match.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def log_density(x: Tensor, centers: Tensor, weights: Tensor, bandwidth: Tensor) -> Tensor:
    """log f(x_i), f(x) = sum_j (w_j / C) K_H(x - c_j), each kernel as a product over dimensions,
    summed with fsum.
    """
    alive = [d for d in range(x.size(1)) if bandwidth[d] > 0]
    result = []
    for x_i in x.double().tolist():
        terms = []
        for c_j, w_j in zip(centers.double().tolist(), weights.double().tolist(), strict=True):
            if w_j == 0:
                continue
            log_kernel = 0.0
            for d in alive:
                h = float(bandwidth[d])
                log_kernel += -0.5 * ((x_i[d] - c_j[d]) / h) ** 2 - math.log(h) - 0.5 * math.log(2 * math.pi)
            terms.append(math.log(w_j / len(centers)) + log_kernel)
        top = max(terms)
        result.append(top + math.log(math.fsum(math.exp(t - top) for t in terms)))
    return torch.tensor(result, dtype=torch.float64)


def silverman(std: list[float], n: int) -> list[float]:
    d = sum(s > 0 for s in std)
    return [(4 / ((d + 2) * n)) ** (1 / (d + 4)) * s for s in std]


def cut_off(deviation: float, sigma: float) -> float:
    return max(-10 * sigma, min(10 * sigma, deviation)) if sigma > 0 else deviation


def near(values: list[float]) -> list[float]:
    """Values with those far from the median (the lower one of two) drawn in."""
    median = sorted(values)[(len(values) - 1) // 2]
    spread = 1.4826 * sorted(abs(v - median) for v in values)[(len(values) - 1) // 2]
    return [median + cut_off(v - median, spread) for v in values]


class Estimator:
    """Section 3 of the method, one sample at a time."""

    def __init__(self, n_centers: int, beta: float) -> None:
        self.n_centers, self.beta = n_centers, beta
        self.centers: list[list[float]] = []
        self.seen: list[list[float]] = []

    def step(self, x: Tensor) -> None:
        rows = x.double().tolist()
        if not self.centers:
            self.seen += rows
            if len(self.seen) >= self.n_centers:
                self.centers = [list(row) for row in self.seen[: self.n_centers]]
                self.counts = [1] * self.n_centers
                d = len(rows[0])
                columns = [near([c[k] for c in self.centers]) for k in range(d)]
                self.mean = [sum(column) / self.n_centers for column in columns]
                self.variance = [
                    sum((value - mean) ** 2 for value in column) / self.n_centers
                    for column, mean in zip(columns, self.mean, strict=True)
                ]
                self.updates = 0
            return
        d = len(self.mean)
        h = self.bandwidth()
        went: list[list[list[float]]] = [[] for _ in self.centers]
        for row in rows:
            distances = [sum(((row[k] - c[k]) / h[k]) ** 2 for k in range(d) if h[k] > 0) for c in self.centers]
            went[distances.index(min(distances))].append(self.reached(row))
        rows = [self.reached(row) for row in rows]
        for j, members in enumerate(went):
            if members:
                for k in range(d):
                    m = sum(row[k] for row in members) / len(members)
                    self.centers[j][k] = (1 - self.beta) * self.centers[j][k] + self.beta * m
                self.counts[j] += len(members)
        self.updates += 1
        rate = max(self.beta, 1 / (self.updates + 1))
        for k in range(d):
            batch_mean = sum(row[k] for row in rows) / len(rows)
            around_old_mean = sum((row[k] - self.mean[k]) ** 2 for row in rows) / len(rows)
            shift = rate * (batch_mean - self.mean[k])
            self.variance[k] = (1 - rate) * self.variance[k] + rate * around_old_mean - shift**2
            self.mean[k] += shift

    def reached(self, row: list[float]) -> list[float]:
        """What lies further out than 10 standard deviations counts as lying there."""
        return [m + cut_off(x - m, math.sqrt(v)) for x, m, v in zip(row, self.mean, self.variance, strict=True)]

    def bandwidth(self) -> list[float]:
        std = [math.sqrt(v) for v in self.variance]
        return silverman([s if s > 1e-5 * max(std) else 0.0 for s in std], self.n_centers)

    def log_density(self, x: Tensor) -> Tensor:
        total = sum(self.counts)
        weights = torch.tensor([n / total for n in self.counts], dtype=torch.float64)
        centers = torch.tensor(self.centers, dtype=torch.float64)
        return log_density(x, centers, weights, torch.tensor(self.bandwidth(), dtype=torch.float64))


def gradients_of_kept(model: nn.Module, x: Tensor, y: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """Gradients of the mean loss over the kept samples, each run through the plain model on its own
    terms.
    """
    model.zero_grad()
    nn.functional.cross_entropy(model(x[kept]), y[kept]).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class Memory:
    """The latest rows, oldest first, and distances to them one pair at a time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: list[list[float]] = []  # by place: a new row takes that of the oldest
        self.head = 0

    def add(self, x: Tensor) -> None:
        for row in x.double().tolist():
            if all(math.isfinite(v) for v in row):
                if len(self.rows) < self.size:
                    self.rows.append(row)
                else:
                    self.rows[self.head] = row
                self.head = (self.head + 1) % self.size

    def deviations(self) -> list[float]:
        """Standard deviations; where values lie far from the middle, of those drawn in."""
        looked = [self.rows[i * len(self.rows) // 256] for i in range(256)]
        result = []
        for k in range(len(self.rows[0])):
            middle = sorted(row[k] for row in looked)[127]
            spread = 1.4826 * sorted(abs(row[k] - middle) for row in looked)[127]
            values = [cut_off(row[k] - middle, spread) for row in self.rows]
            mean = math.fsum(values) / len(values)
            result.append(math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)))
        positive = sorted(s for s in result if s > 0)
        usual = positive[(len(positive) - 1) // 2] if positive else math.inf
        return [s if s > 1e-5 * usual else 0.0 for s in result]

    def to_each(self, row: list[float], rows: list[list[float]] | None = None) -> list[float]:
        return [
            math.sqrt(math.fsum(((a - b) / s) ** 2 for a, b, s in zip(row, r, self.deviations(), strict=True) if s > 0))
            for r in (self.rows if rows is None else rows)
        ]

    def distance(self, x: Tensor) -> Tensor:
        return torch.tensor([min(self.to_each(row)) for row in x.double().tolist()], dtype=torch.float64)

    def near_copies(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        group, alive = min(4, max(1, self.size // 8)), sum(s > 0 for s in self.deviations())
        queries, found, of_four, falls = x.double().tolist(), [], [], []
        for place, row in enumerate(queries):
            far = self.to_each(row)
            least = self.usual(far, group)
            of_four.append(max(least, 0.3 * math.sqrt(2 * alive)))
            least_of_each = [min(far[i : i + group]) for i in range(0, len(far), group)]
            found.append(least_of_each + self.to_each(row, queries[:place]))
            if (of_all := self.usual(far, 4 * group)) > 0 and least > of_all:
                falls.append(math.log(least / of_all))
        dimension = 8.0
        if len(far) >= 64 and falls:
            dimension = min(max(math.log(4) / sorted(falls)[(len(falls) - 1) // 2], 8.0), 64.0)
        result = []
        for place, row in enumerate(queries):
            usual = of_four[place] * min(1.0, group / len(far)) ** (1 / dimension)
            if own is not None:
                usual = min(usual, 3 * self.to_each(row, [own[place].double().tolist()])[0])
            parts = [distance / max(usual, 1e-3) for distance in found[place]]
            near = [min(max((0.6 - part) / 0.4, 0.0), 1.0) for part in parts]
            result.append(math.fsum(near) * max(near))
        return torch.tensor(result)

    @staticmethod
    def usual(far: list[float], group: int) -> float:
        """What nine in ten groups of rows do not exceed by their nearest."""
        least = sorted(min(far[i : i + group]) for i in range(0, len(far), group))
        return least[(len(least) - 1) * 9 // 10]

    def log_density(self, x: Tensor) -> Tensor:
        alive = [s for s in self.deviations() if s > 0]
        ball = math.pi ** (len(alive) / 2) / math.gamma(len(alive) / 2 + 1) * math.prod(alive)
        return torch.tensor([-math.log(len(self.rows) * ball * max(d, 1e-3) ** len(alive)) for d in self.distance(x)])


def sketch_of_image(image: Tensor, filters: Tensor) -> Tensor:
    """Of one image ``[C, H, W]`` whose sides are below 64, pixel by pixel, without a rim."""
    image, filters = image.double(), filters.double()
    c, height, width = image.shape
    image = image[:, height // 32 : height - height // 32, width // 32 : width - width // 32]
    c, height, width = image.shape
    plain = (image - image.mean((1, 2), keepdim=True)) / image.std((1, 2), correction=0, keepdim=True)
    maps = [image[k].flatten().tolist() for k in range(c)]
    answers = []
    for number, f in enumerate(filters):
        even = number < len(filters) // 2
        answer = []
        for i in range(1, height - 1):
            for j in range(1, width - 1):
                total = 0.0
                for k in range(c):
                    for a in (-1, 0, 1):
                        for b in (-1, 0, 1):
                            mirrored = float(f[k, a + 1, 1 - b])
                            weight = (float(f[k, a + 1, b + 1]) + (mirrored if even else -mirrored)) / math.sqrt(2)
                            total += weight * float(plain[k, i + a, j + b])
                answer.append(max(total, 0.0) if even else abs(total))
        answers.append(answer)

    def moments(values: list[list[float]]) -> list[float]:
        means = [math.fsum(v) / len(v) for v in values]
        return means + [
            math.sqrt(math.fsum((x - m) ** 2 for x in v) / len(v)) for v, m in zip(values, means, strict=True)
        ]

    half = len(filters) // 2
    return torch.tensor(moments(maps) + moments(answers[:half]) + moments(answers[half:]), dtype=torch.float64)


def sketch_of_sequence(x: Tensor, projection: Tensor, filters: Tensor) -> Tensor:
    """Of one sequence ``[T, F]``; a step that repeats the one before counts for nothing."""
    rows, width = x.double().tolist(), x.size(1)
    new = [t for t in range(len(rows)) if t == 0 or rows[t] != rows[t - 1]]
    values = [v for t in new for v in rows[t]]
    middle = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((v - middle) ** 2 for v in values) / len(values)) + 1e-4 * abs(middle)
    columns = [
        [math.fsum(rows[t][k] * p[k] for k in range(width)) for t in new] for p in projection.T.double().tolist()
    ]
    for f in filters.double().tolist():
        answers = []
        for t in new:
            near = [(d, t + d - 2) for d in range(5) if 0 <= t + d - 2 < len(rows)]
            terms = [f[k][d] * (rows[at][k] - middle) / spread for k in range(width) for d, at in near]
            answers.append(max(math.fsum(terms), 0.0))
        columns.append(answers)
    means = [math.fsum(column) / len(new) for column in columns]
    stds = [
        math.sqrt(math.fsum((v - m) ** 2 for v in column) / len(new)) for column, m in zip(columns, means, strict=True)
    ]
    return torch.tensor(means + stds, dtype=torch.float64)


def sketch_of_tokens(tokens: list[int]) -> Tensor:
    """Of one sequence: tokens and, with weight 0.35, pairs, each put into one of 256 buckets with a
    sign.
    """
    total = [0.0] * 256
    for length, weight in ((1, 1.0), (2, 0.35)):
        block = [0.0] * 256
        for end in range(length, len(tokens) + 1):
            if end > 1 and tokens[end - 1] == tokens[end - 2]:
                continue
            value = 0
            for token in tokens[end - length : end]:
                value = (value * 1_103_515_245 + token + 1) % (2**31 - 1)
            value = value * 1_640_531_527 % (2**31 - 1)
            block[value % 256] += -1.0 if value // 256 % 2 else 1.0
        norm = math.sqrt(sum(v * v for v in block))
        total = [t + weight * v / norm if norm else t for t, v in zip(total, block, strict=True)]
    norm = math.sqrt(sum(v * v for v in total))
    return torch.tensor([v / norm if norm else 0.0 for v in total], dtype=torch.float64)


def chances(log_weights_N: Tensor, kept: float) -> Tensor:
    """Of each of very many samples to be drawn, ``1 - exp(-w t)``, with t such that a share
    ``kept`` of all is.

    Example:
        >>> chances(torch.tensor([0.0, 0.0, -30.0, -30.0]), 0.4).round(decimals=2)
        tensor([0.8000, 0.8000, 0.0000, 0.0000], dtype=torch.float64)
    """
    w_N = log_weights_N.double()
    low, high = -100.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        if float(-torch.expm1(-(w_N + middle).exp()).mean()) < kept:
            low = middle
        else:
            high = middle
    return -torch.expm1(-(w_N + high).exp())
