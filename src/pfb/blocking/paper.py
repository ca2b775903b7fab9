"""The paper's own settings."""

from __future__ import annotations

from typing import Any

from pfb.density.moving_centers import MovingCenters
from pfb.selection.rules import RareFirst
from pfb.selection.schedule import window

CENTERS = 100  # the paper: "small, e.g. 100"; its release: 64
DIMENSIONS = 128  # the release; the paper's D is not known
START, STOP = 2 / 90, 79 / 90  # of the release, for ImageNet
LEVELS = 8  # of the ramp, which the release has continuous: each is one batch size of the deep part


def paper(total_steps: int, prune: float = 0.4) -> dict[str, Any]:
    """Keyword arguments for :func:`pfb.attach` that make a training the paper's: 100 centers, at
    most 128 dimensions, beta 0.01, alpha ~ U(0, 0.01), and the window and ramp of the authors'
    release (2/90 to 79/90 of training, from ``0.2 prune`` to ``prune`` over its first half), which
    the paper does not give. So the share pruned over the whole training is about two thirds of
    ``prune``.

    Args:
        total_steps: optimizer steps of the whole training.
        prune: share of each batch that stops once the ramp is over; the paper recommends 0.3 to
            0.5.

    Raises:
        ValueError: no whole number of steps, or a share outside [0, 1).

    Example:
        >>> import torch, pfb
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
        >>> blocker = pfb.attach(model, "0", **pfb.paper(total_steps=9000))
        >>> blocker.prune, blocker.schedule.share(8000, 9000), blocker.density.n_centers
        (0.0, 0.0, 100)
    """
    return {
        "prune": window(prune, START, STOP, ramp=LEVELS),
        "rule": RareFirst(alpha=0.01),
        "density": MovingCenters(CENTERS, beta=0.01),
        "feature_dim": DIMENSIONS,
        "total_steps": total_steps,
    }
