"""From the user's words to a blocker on a model: checks, then wires."""

from __future__ import annotations

import difflib
import logging
import weakref
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pfb.blocking import cuts
from pfb.blocking.blocker import Blocker
from pfb.blocking.gate import Gate
from pfb.blocking.hooks import is_wired
from pfb.blocking.inputs import checked_dim, doubt_of_batch_dim
from pfb.blocking.recompute import Recompute
from pfb.blocking.reuse import Reuse
from pfb.density.kernels import DENSITY, Density
from pfb.density.moving_centers import DensityEstimator
from pfb.density.neighbours import NeighbourMemory
from pfb.features.cut import FeatureReader, Features, channel_layers
from pfb.features.momentum import Momentum
from pfb.features.originals import Originals
from pfb.features.sketch import Sketch
from pfb.selection.rules import Importance, InverseDensity
from pfb.selection.schedule import Schedule, checked_total_steps, constant
from pfb.selection.views import Views

log = logging.getLogger("pfb")

OWNERS: weakref.WeakValueDictionary[int, Blocker] = weakref.WeakValueDictionary()
"""Blockers by the id of the density they hold."""

RULES = {"rarefirst": "RareFirst", "inversedensity": "InverseDensity", "uniform": "Uniform"}
FEATURES = ("cut", "cut-spread", "momentum", "sketch")


def attach(
    model: nn.Module,
    cut: str | nn.Module | None = None,
    prune: float | Schedule = 0.4,
    *,
    shallow: Literal["reuse", "recompute"] | Reuse | Recompute = "recompute",
    importance: Importance | None = None,
    total_steps: int | None = None,
    estimator: Density | None = None,
    features: Literal["cut", "cut-spread", "momentum", "sketch"] | Callable[[Any], Tensor] | None = None,
    feature_dim: int | None = None,
    channel_dim: int | None = None,
    batch_dim: int | None = None,
    views: int | Views = 1,
) -> Blocker:
    """Stop a share of every training batch at a layer of the model (Partial Forward Blocking, arXiv
    2506.23674).

    By default samples are stopped that are like others seen lately, as fixed features of the
    model's input tell, and nothing is computed for them: a step costs what one on the kept samples
    costs. The paper's own setting is ``shallow="reuse", importance=pfb.RareFirst()``.

    The model's code, parameter names and ``state_dict`` stay as they are. Samples are stopped only
    while the model is in training mode and gradients are enabled; otherwise its output is
    untouched, bit for bit.

    Args:
        model: any module. Attach before ``torch.compile`` and before wrapping it for distributed
            training.
        cut: the layer after which samples stop: its dotted name, the module, or ``None`` for the
            first stage, which is found by the model's structure and logged.
        prune: share of each batch that stops, in [0, 1), or :func:`pfb.window`. N samples keep
            ``N - floor(prune * N)``, at least 2 (N itself if smaller).
        shallow: ``"recompute"`` runs the kept samples from the input, and where features of the cut
            are asked for, scores before that in a pass without graph; masks, labels and other
            inputs that bypass the cut are selected with the batch. ``"reuse"`` keeps the shallow
            part's graph for the whole batch (the paper). Settings: :class:`pfb.Recompute`,
            :class:`pfb.Reuse`.
        importance: callable from features ``[N, D]`` (and, as second argument, the density
            estimator) to importance ``[N]``, larger is kept. Default :class:`pfb.InverseDensity`,
            which finds what the data repeat; :class:`pfb.RareFirst` is the paper's.
        total_steps: optimizer steps of the whole training; needed by :func:`pfb.window`.
        estimator: the density. Default :class:`pfb.NeighbourMemory` for ``InverseDensity``, else
            the paper's moving centers, :class:`pfb.DensityEstimator`.
        features: what samples are judged by: ``"cut"``, averages of the cut's output over all but
            the channels (the paper); ``"cut-spread"``, standard deviations beside them;
            ``"momentum"``, both under a moving average of the shallow weights (``recompute`` only);
            ``"sketch"``, fixed features of the model's first input (:class:`pfb.features.sketch.Sketch`),
            with which ``recompute`` runs no scoring pass; :class:`pfb.Originals`, the same of what
            the input was before it was augmented; or a callable to features ``[N, D]``, of the
            cut's output, or of the first input if its attribute ``of`` is ``"input"``. Default
            ``"sketch"`` for ``InverseDensity``, else ``"cut"``.
        feature_dim: reduce wider features to so many dimensions by a fixed random projection;
            ``None``: never.
        channel_dim: where the cut's output has its channels once its samples are in dimension 0;
            inferred from the layers inside the cut.
        batch_dim: where the cut's output has its samples; 0, or 1 for sequences ``[T, N, C]``.
        views: rows of a batch that belong together and go on together or not at all, such as two
            views of an image: their number, or :class:`pfb.Views`.

    Returns:
        A :class:`Blocker`; keep it, its hooks go when it goes.

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
        >>> blocker.selection.indices.numel()
        6
    """
    _check_model(model)
    checked_total_steps(total_steps)
    schedule = prune if isinstance(prune, Schedule) else constant(prune)
    wiring = _wiring_named(shallow)
    importance = _checked_importance(importance)
    name, module = cuts.resolve(model, cut)
    if cut is None:
        log.info("pfb cuts %s after %r", type(model).__name__, name)
    doubt = doubt_of_batch_dim(name, module) if batch_dim is None else None
    dim = 0 if batch_dim is None else checked_dim(batch_dim)
    local = isinstance(importance, InverseDensity)
    if features is None:
        features = "sketch" if local else "cut"
    estimator = _checked_estimator(estimator, local)
    input_dim = wiring.batch_dim if isinstance(wiring, Recompute) else dim
    reader = _reader(features, model, name, module, feature_dim, channel_dim, dim, input_dim)
    if isinstance(reader, Momentum) and not isinstance(wiring, Recompute):
        raise ValueError(
            '`features="momentum"` needs a scoring pass of its own: use shallow="recompute", or `features="sketch"`, '
            "which does not drift either"
        )
    gate = Gate(importance, estimator, reader, views if isinstance(views, Views) else Views(views))
    owner = OWNERS.get(id(estimator))
    if owner is not None and not owner.detached:
        raise ValueError(
            f"this `estimator` belongs to another blocker, at the cut {owner.cut!r}, and would be moved by both. Give "
            "each blocker one of its own, or detach() the other first."
        )
    handles = wiring.wire(model, module, name, gate, doubt, dim)
    blocker = Blocker(gate, handles, name, wiring.name, schedule, total_steps, model)
    OWNERS[id(estimator)] = blocker
    return blocker


def _reader(
    features: str | Callable[[Any], Tensor],
    model: nn.Module,
    cut: str,
    module: nn.Module,
    feature_dim: int | None,
    channel_dim: int | None,
    batch_dim: int,
    input_dim: int,
) -> Features:
    """The features of this name, or by this callable.

    Raises:
        ValueError: another name; or settings of the cut's output for features of the input.
    """
    if features == "sketch" or isinstance(features, Originals):
        if feature_dim is not None or channel_dim is not None:
            said = '`features="sketch"`' if features == "sketch" else "pfb.Originals"
            raise ValueError(
                f"`feature_dim` and `channel_dim` are of the cut's output (got {feature_dim} and {channel_dim}), which "
                f"{said} does not read: leave them out"
            )
        reader = features if isinstance(features, Originals) else Sketch()
        reader.batch_dim = input_dim
        return reader
    layers = channel_layers(module, model)
    if features == "momentum":
        return Momentum(cut, layers, feature_dim, channel_dim, batch_dim)
    if features in ("cut", "cut-spread"):
        return FeatureReader(layers, None, feature_dim, channel_dim, batch_dim, spread=features == "cut-spread")
    if isinstance(features, (str, type)) or not callable(features):
        near = difflib.get_close_matches(str(features).lower(), FEATURES, n=1)
        raise ValueError(
            f"`features` must be {', '.join(map(repr, FEATURES))} or a callable to features [N, D] (got {features!r})."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )
    if channel_dim is not None:
        raise ValueError(
            f"`channel_dim` tells how to average the cut's output (got {channel_dim}), and `features` of your own read "
            "it as it is: leave one out"
        )
    return FeatureReader(layers, features, feature_dim, None, batch_dim)


def _wiring_named(shallow: str | Reuse | Recompute) -> Reuse | Recompute:
    """The wiring itself, or the one of this name with its default settings.

    Raises:
        ValueError: another name or kind of thing.
    """
    if isinstance(shallow, (Reuse, Recompute)):
        return shallow
    if shallow == "reuse":
        return Reuse()
    if shallow == "recompute":
        return Recompute()
    raise ValueError(
        f'`shallow` must be "reuse", "recompute", pfb.Reuse() or pfb.Recompute(...) with brackets (got {shallow!r})'
    )


def _checked_importance(importance: Importance | None) -> Importance:
    if importance is None:
        return InverseDensity()
    if isinstance(importance, type) or not callable(importance):
        said = importance.__name__ if isinstance(importance, type) else str(importance)
        near = difflib.get_close_matches(said.lower().replace("-", ""), RULES, n=1)
        raise TypeError(
            "`importance` must be a callable such as `pfb.RareFirst()` or a function of features [N, D] "
            f"(got {importance!r})." + (f" Did you mean `pfb.{RULES[near[0]]}()`?" if near else "")
        )
    return importance


def _checked_estimator(estimator: Density | None, local: bool) -> Density:
    if estimator is None:
        return NeighbourMemory() if local else DensityEstimator()
    has = DENSITY - {"log_density" if local else "isolation"}  # what the other rules read
    lacks = sorted(name for name in has if not hasattr(estimator, name))
    if lacks or isinstance(estimator, type):
        raise TypeError(
            f"`estimator` must be a density such as `pfb.NeighbourMemory(4096)` or `pfb.DensityEstimator()` (got "
            f"{estimator!r}" + (f", which has no {', '.join(lacks)})" if lacks else ", a class: write `()` after it)")
        )
    return estimator


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module (got {type(model).__name__})")
    if isinstance(model, nn.DataParallel):
        raise TypeError("nn.DataParallel is not supported; use DistributedDataParallel, one process per device")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise TypeError(
            "attach to the model before wrapping it: pfb.attach(model, ...), then DistributedDataParallel(model)"
        )
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule) or model._compiled_call_impl is not None:
        raise TypeError(
            "a compiled model ignores hooks that come later: pfb.attach(model, ...) first, then torch.compile"
        )
    if is_wired(model):
        raise ValueError(
            "a blocker is attached to this model already, and two would prune twice: detach() the first one"
        )
