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
