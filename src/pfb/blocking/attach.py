"""The paper's tool: validate arguments and attach a Blocker to a model."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pfb.blocking import reuse
from pfb.blocking.blocker import Blocker
from pfb.blocking.gate import Gate
from pfb.blocking.hooks import is_wired
from pfb.blocking.inputs import checked_dim, checked_names, doubt_of_batch_dim
from pfb.density.kernels import Density
from pfb.features.base import Features
from pfb.features.cut import CutFeatures, channel_layers
from pfb.model import cuts
from pfb.pruning.arguments import checked_density
from pfb.selection.rules import RareFirst, Rule, checked_rule
from pfb.selection.schedule import Progress, Schedule
from pfb.selection.views import Views

log = logging.getLogger("pfb")

OWNERS: weakref.WeakValueDictionary[int, Blocker] = weakref.WeakValueDictionary()
"""Blockers by the id of the density they hold."""

FEATURES = ("cut", "cut-spread")


def attach(
    model: nn.Module,
    cut: str | nn.Module | None = None,
    prune: float | Schedule = 0.4,
    *,
    rule: Rule | None = None,
    density: Density | None = None,
    features: Literal["cut", "cut-spread"] | Callable[[Any], Tensor] | None = None,
    total_steps: int | None = None,
    feature_dim: int | None = None,
    channel_dim: int | None = None,
    batch_dim: int | None = None,
    views: int | Views = 1,
    shared: tuple[str, ...] = (),
) -> Blocker:
    """Partial Forward Blocking (arXiv 2506.23674): all samples pass the shallow layers, those whose
    features are dense stop there, and the deep layers, the loss and the backward pass see the rest.

    The defaults are the paper's method: cut after the first stage, features averaged over space,
    moving centers, importance 1 / (f + r), the shallow pass reused; :func:`pfb.paper` adds its
    window and ramp. The model's code, parameter names and ``state_dict`` stay as they are. Samples
    are stopped only while the model is in training mode and gradients are enabled; otherwise its
    output is untouched, bit for bit. The blocker stays until :meth:`Blocker.detach`.

    Args:
        model: any module. Attach before ``torch.compile`` and before wrapping it for distributed
            training.
        cut: the layer after which samples stop: its dotted name, the module, or ``None`` for the
            first stage, which is found by the model's structure and logged.
        prune: share of each batch that stops, in [0, 1), or :func:`pfb.window`. N samples keep
            ``N - floor(prune * N)``, at least 2 (N itself if smaller).
        rule: callable from features ``[N, D]`` (and, as second argument, the density) to importance
            ``[N]``, larger is kept. Default :class:`pfb.RareFirst`, the paper's.
        density: default :class:`pfb.MovingCenters`, the paper's; :class:`pfb.NeighbourMemory` for
            :class:`pfb.InverseDensity`.
        features: what samples are judged by: ``"cut"``, by default, averages of the cut's output
            over all but the channels (the paper); ``"cut-spread"``, standard deviations beside
            them; or a callable from the cut's output to ``[N, D]``.
        total_steps: optimizer steps of the whole training; needed by :func:`pfb.window`.
        feature_dim: reduce wider features to so many dimensions by a fixed random projection (the
            paper's release: 128); ``None``: never.
        channel_dim: where the cut's output has its channels once its samples are in dimension 0;
            inferred from the layers inside the cut.
        batch_dim: where the cut's output has its samples; 0, or 1 for sequences ``[T, N, C]``.
        views: rows of a batch that belong together and go on together or not at all, such as two
            views of an image: their number, or :class:`pfb.Views`.
        shared: names of inputs of the model, beside the one that the cut sees, of which nothing
            after the cut takes rows.

    Returns:
        A :class:`Blocker`.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names the rule, the value
            got and the way out.

    Example:
        >>> import torch, pfb
        >>> layers = torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> blocker = pfb.attach(model, cut="1", prune=0.4)
        >>> for _ in range(3):
        ...     x, y = torch.randn(10, 4), torch.randint(3, (10,))
        ...     loss = torch.nn.functional.cross_entropy(model(x), blocker.select(y))
        ...     loss.backward(); optimizer.step(); optimizer.zero_grad()
        ...     blocker.step()
        >>> blocker.selection is None or blocker.selection.indices.numel()
        6
    """
    _check_model(model)
    progress = Progress(prune, total_steps)
    call = checked_rule(rule, RareFirst())
    density = checked_density(density, call.rule)
    shared = checked_names(shared)
    name, module = cuts.resolve(model, cut)
    if cut is None:
        log.info("pfb cuts %s after %r", type(model).__name__, name)
    doubt = doubt_of_batch_dim(name, module) if batch_dim is None else None
    dim = 0 if batch_dim is None else checked_dim(batch_dim)
    features = "cut" if features is None else features
    _check_features(features, channel_dim)
    own, spread = features if callable(features) else None, features == "cut-spread"
    reader = CutFeatures(channel_layers(module, model), own, feature_dim, channel_dim, dim, spread)
    gate = Gate(call, density, reader, name, views if isinstance(views, Views) else Views(views))
    owner = OWNERS.get(id(density))
    if owner is not None and not owner.detached:
        raise ValueError(
            f"this `density` belongs to another blocker, at the cut {owner.cut!r}, and would be moved by both. Give "
            "each blocker one of its own, or detach() the other first."
        )
    blocker = Blocker(gate, reuse.wire(model, module, gate, shared, doubt), progress, model)
    OWNERS[id(density)] = blocker
    return blocker


def _check_features(features: Any, channel_dim: int | None) -> None:
    """Is it a name, or a callable?

    Raises:
        ValueError: neither; or a setting that a callable does not need.
    """
    if isinstance(features, (str, type, Features)) or not callable(features):
        if features not in FEATURES:
            raise ValueError(
                f"`features` must be {' or '.join(map(repr, FEATURES))} or a callable from the cut's output to "
                f"features [N, D] (got {features!r}). What reads the model's input, such as a sketch, judges before "
                "the model: pfb.BatchPruner(features=...)."
            )
    elif channel_dim is not None:
        raise ValueError(
            f"`channel_dim` tells how to average the cut's output (got {channel_dim}), and `features` of your own read "
            "it as it is: leave one out"
        )


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module (got {type(model).__name__})")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise TypeError(
            "attach to the model before wrapping it: pfb.attach(model, ...), then DistributedDataParallel(model), one "
            "process per device; nn.DataParallel is not supported"
        )
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule) or model._compiled_call_impl is not None:
        raise TypeError(
            "a compiled model ignores hooks that come later: pfb.attach(model, ...) first, then torch.compile"
        )
    if is_wired(model):
        raise ValueError(
            "a blocker is attached to this model already, and two would prune twice: detach() the first one"
        )
