"""The gradient noise scale: how many samples a batch needs before more of them add little.

"An Empirical Model of Large-Batch Training" (McCandlish et al., 2018, arXiv
1812.06162), appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfb.features.model_inputs import device_of, moved, run
from pfb.selection import nested as tree

Loss = Callable[[Any, Any], Tensor]
"""From the model's output and the labels to the mean loss of a batch."""


@dataclass(frozen=True)
class NoiseScale:
    """What ``noise_scale`` measured.

    Attributes:
        samples: the simple noise scale ``tr(Sigma) / |G|^2``, in samples; infinite where the mean
            gradient drowns in noise.
        seen: samples it was measured on; a scale far above is a guess.
        loss: mean loss.
        untrained: the loss is that of guessing among the classes; ``None`` where that is not known,
            such as in regression. The scale grows while a model learns, so one of an untrained
            model says little.
    """

    samples: float
    seen: int
    loss: float
    untrained: bool | None = False


def noise_scale(
    model: nn.Module,
    batches: Sequence[tuple[Any, Any]],
    loss: Loss | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> NoiseScale:
    """Measure the simple noise scale at the model's weights, from gradients of single batches and
    their mean.

    With K batches of b samples, gradients g_k and mean g, both estimates are unbiased::

        tr(Sigma) = b K / (K - 1) (mean |g_k|^2 - |g|^2)
        |G|^2     = (K |g|^2 - mean |g_k|^2) / (K - 1)

    Args:
        model: in the mode it is to be measured in; its gradients are overwritten.
        batches: at least two of ``(input, labels)``, of random samples, all equally many.
        loss: of output and labels, the mean over samples; ``None``: see :func:`objective`.
        on_batch: called after each.

    Raises:
        ValueError: fewer than two batches, of different sizes, or no loss is known.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> x = [torch.full((2, 1), v) for v in (1.0, 3.0)]  # the loss is w x: gradients 1 and 3
        >>> noise_scale(model, [(v, None) for v in x], lambda out, _: out.mean()).samples
        1.3333333333333333
    """
    if len(batches) < 2:
        raise ValueError(f"the noise scale needs at least two batches (got {len(batches)})")
    sizes = {rows_of(x) for x, _ in batches}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"the batches must be equally large (got {sorted(sizes)} samples)")
    b, k = sizes.pop(), len(batches)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("no parameter of the model takes a gradient")
    device = device_of(model)
    sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    squares, losses, guessing = 0.0, [], []
    for batch in batches:
        x, y = moved(batch, device)
        output = run(model, x)
        value = objective(output, y, loss)
        if value is None:
            raise ValueError("no loss is known: pass `loss=`, a function of the model's output and the labels")
        grads = torch.autograd.grad(value, parameters, allow_unused=True)
        for total, grad in zip(sums, grads, strict=True):
            if grad is not None:
                total += grad.float()
        squares += float(sum(_square(grad) for grad in grads if grad is not None)) / k
        losses.append(float(value.detach()))
        guessing.append(_loss_of_guessing(output, y))
        on_batch()
    mean_square = float(sum(_square(total / k) for total in sums))
    variance = b * k / (k - 1) * (squares - mean_square)
    signal = (k * mean_square - squares) / (k - 1)
    scale = max(0.0, variance) / signal if signal > 0 else math.inf
    mean_loss, guess = sum(losses) / k, sum(guessing) / k
    return NoiseScale(scale, b * k, mean_loss, mean_loss > 0.95 * guess if math.isfinite(guess) else None)


def objective(output: Any, labels: Any, loss: Loss | None = None) -> Tensor | None:
    """A batch's mean loss: ``loss(output, labels)`` if given, else the one that the output carries
    (``.loss``, as in transformers), else cross-entropy if the labels are classes ``[N]`` and the
    output logits ``[N, classes]``; else ``None``.
    """
    if loss is not None:
        return loss(output, labels)
    carried = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(carried, Tensor) and carried.requires_grad:
        return carried.mean()
    logits = logits_of(output)
    if logits is None or logits.dim() != 2 or not are_classes(labels) or not 0 < len(logits) == len(labels):
        return None
    fit = int(labels.max()) < logits.size(1) and int(labels.min()) >= 0
    return F.cross_entropy(logits.float(), labels.long()) if fit else None


def logits_of(output: Any) -> Tensor | None:
    """Logits ``[N, classes, ...]`` in a model's output, if it may hold any."""
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        return None
    return logits.movedim(-1, 1) if logits.dim() == 3 else logits  # of tokens [N, T, classes]


def are_classes(labels: Any) -> bool:
    """Whether labels may be classes: whole numbers ``[N]``."""
    return isinstance(labels, Tensor) and labels.dim() == 1 and _are_whole(labels)


def rows_of(x: Any) -> int:
    """Samples of an input: rows of its first tensor that has any; 0 without one."""
    return next((len(leaf) for leaf in tree.leaves(x) if leaf.dim() > 0), 0)


def _loss_of_guessing(output: Any, labels: Any) -> float:
    """The cross-entropy of guessing a class, of each pixel or token; infinite if that is not it."""
    logits = logits_of(output)
    if logits is None or logits.size(1) < 2 or not isinstance(labels, Tensor) or not _are_whole(labels):
        return math.inf
    return math.log(logits.size(1))


def _are_whole(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _square(x: Tensor) -> Tensor:
    return x.double().square().sum() if x.device.type != "mps" else x.float().square().sum()
