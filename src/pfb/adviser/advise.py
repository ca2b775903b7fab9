"""Should I use it? A look at the user's own data, and perhaps model, before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pfb.adviser import near_copies, overlap, shares, step_time
from pfb.adviser.advice import Advice, share_to_prune
from pfb.adviser.scan import Progress, random_states_kept, scan
from pfb.blocking.hooks import is_wired
from pfb.features.base import Features
from pfb.model.inputs import Prepare, device_of

LEAST_TESTED = 200  # samples


def advise(
    model: nn.Module | Iterable[Any] | None,
    loader: Iterable[Any] | None = None,
    *,
    test: Iterable[Any] | None = None,
    samples: int = 20_000,
    features: Features | Callable[[Any], Tensor] | None = None,
    prepare: Prepare | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Advice:
    """Look at data, and say whether anything can be spared, of what, and how.

    One pass over at most ``samples`` samples. Then all are compared with all for near-copies, the
    default of :class:`pfb.BatchPruner` runs over them without a training to tell whom it would
    leave out, and, if a model is given, some of its steps are timed by the processor's time, which
    does not depend on what else the machine does. Model, gradients and random numbers are as
    before; the loader has given a pass.

    Args:
        model: any module, on the device it will be trained on, to have steps timed (inside
            ``torch.autocast``: those of mixed precision); ``None``, or left out, for a look at the
            data only.
        loader: any iterable of batches that a pruner takes. Without augmentation near-copies are
            told best; without shuffling indices are those of the data set.
        test: batches of what will be tested on, in the same form: whether they repeat training, or
            themselves, decides what to leave out. A tenth of ``samples``, at least 200.
        samples: how many to look at. Time grows with the square: 20,000 take seconds to a minute.
        features: what samples are compared by, as in :class:`pfb.BatchPruner`.
        prepare: for other batches: a function that returns ``(input, labels)``, with the input a
            tensor, a tuple of positional or a dict of keyword arguments of the model; or ``(input,
            labels, index)``, where the index ``[N]`` says which samples of the data set these are.
        progress: told what is done, how much, and of how much, if that is known.

    Raises:
        TypeError: no loader, or batches of which nothing can be told.
        ValueError: a loader without samples or with one only, or that draws with replacement; a
            model that does not run on them, or one that is pruned already.

    Example:
        >>> import torch, pfb
        >>> _ = torch.manual_seed(0)
        >>> scenes, frames = torch.randn(100, 16), 10
        >>> x = scenes.repeat_interleave(frames, 0) + 0.01 * torch.randn(1000, 16)
        >>> loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=50)
        >>> advice = pfb.advise(None, loader)
        >>> len(advice.groups), advice.near_copies, advice.spare
        (100, 1.0, 0.9)
    """
    model, loader = _checked(model, loader, samples)
    device = torch.device("cpu") if model is None else device_of(model)
    with random_states_kept(loader, device), torch.enable_grad():
        seen = scan(loader, prepare, features, samples, progress)
        if len(seen) < 2:
            raise ValueError("`loader` gave a single sample, and of one nothing can be told: give it more data")
        copies = near_copies.find(seen, progress)
        prune = share_to_prune(copies.seen)
        tested = None
        if test is not None:
            of_test: Progress = lambda what, done, total: progress(f"{what} of the test", done, total)  # noqa: E731
            other = scan(test, prepare, features, max(LEAST_TESTED, samples // 10), of_test)
            tested = overlap.find(seen, other, progress)
        steps = None
        if model is not None:
            steps = step_time.find(model, seen, features, prune, copies.memory, prepare is not None, progress)
        return Advice(
            samples=len(seen),
            total=seen.total,
            batch_size=seen.batch_size,
            prune=prune,
            copies=copies,
            shares=shares.find(seen, copies, prune, progress),
            steps=steps,
            tested=tested,
            own_features=features is not None,
            not_finite=seen.numbered(seen.not_finite),
            known_indices=seen.known_indices,
            is_part=seen.is_part,
            size=max(seen.total or 0, 1 + max(seen.index)),
        )


def _checked(model: Any, loader: Any, samples: int) -> tuple[nn.Module | None, Any]:
    """Model and loader, in either order."""
    if isinstance(loader, nn.Module) or (loader is None and not isinstance(model, nn.Module)):
        model, loader = loader, model
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module or None (got {type(model).__name__})")
    if model is not None and is_wired(model):
        raise ValueError("a blocker is attached to this model, whose steps are pruned already: detach() it first")
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 2:
        raise ValueError(f"`samples` must be a whole number of at least 2 (got {samples!r})")
    return model, loader
