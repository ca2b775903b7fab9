"""Should I use it? Minutes on the user's own data and model, before any training."""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfb.features import model_inputs as batches
from pfb.adviser.advice import Advice
from pfb.features.model_inputs import Prepare
from pfb.adviser.findings import MOST_PRUNED, SEEN_ROWS, WORTH_BLOCKING, Tested
from pfb.adviser.noise_scale import Loss, NoiseScale, noise_scale, objective, rows_of
from pfb.adviser.planner import Plan, judging, plan
from pfb.adviser.scan import Progress, Survey, random_states_kept, survey, total_of
from pfb.features import cuts
from pfb.blocking.hooks import is_wired
from pfb.copies.acting import Copies
from pfb.copies.false_positives import mistaken
from pfb.copies.near_duplicates import find_copies
from pfb.features.cut import FeatureReader, Features
from pfb.features.originals import Originals
from pfb.features.sketch import Sketch
from pfb.selection import nested as tree
from pfb.selection.selection import keep_count
from pfb.utils.errors import first_line
from pfb.utils.timing import interleaved_seconds

USUAL_PRUNE = 0.4  # the share looked at where none is recommended
PARTS = 0.05  # shares are recommended in steps of this
LEAST_MEMORY = 1024
LEAST_TESTED = 200  # samples
REPEATS = 5  # of timed steps
PLANNED = 3  # rounds of the plan


def advise(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: Loss | None = None,
    prepare: Prepare | None = None,
    features: Callable[[Any], Tensor] | None = None,
    samples: int = 20_000,
    test: Iterable[Any] | None = None,
    plan: bool = True,
    cut: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Advice:
    """Look at the data and the model, and say whether anything can be spared.

    One pass over at most ``samples`` samples; then all are compared with all for near-copies, a few
    steps are timed, and the gradient noise scale is measured. Model, gradients and random numbers
    are as before; the loader has given a pass. Call it inside ``torch.autocast`` to have mixed
    precision timed.

    Args:
        model: any module, on the device it will be trained on.
        loader: any iterable of batches: tensors, ``(input, labels)``, or mappings, of which the
            model gets what its forward names. Without augmentation near-copies are told best, and
            shuffled the noise scale is right.
        loss: of the model's output and the labels, the mean of a batch. By default the output's
            ``.loss``, or cross-entropy where labels are classes and the output is logits.
        prepare: for other batches: a function that returns ``(input, labels)``, with the input a
            tensor, a tuple of positional or a dict of keyword arguments; or ``(input, labels,
            index)``, where the index ``[N]`` says which samples of the data set these are.
        features: what samples are compared by: a function of the model's first input that returns
            ``[N, D]``; ``attach`` takes it, too, with the attribute ``of = "input"``. By default
            fixed random features of images, tokens, sequences or vectors.
        samples: how many to look at. Time grows with the square: 20,000 take seconds to a minute.
        test: batches of what will be tested on, in the same form: whether they repeat training, or
            themselves, decides what should be stopped. A tenth of ``samples``, at least 200.
        plan: run :func:`pfb.plan`, too, for the cost at each cut.
        cut: the layer to attach at; by default the first stage.
        progress: told what is done, how much, and of how much, if that is known.

    Raises:
        TypeError: no model, no loader, or batches of which input and labels cannot be told.
        ValueError: a loader without samples or with one only, or that draws with replacement, a
            model that does not run on them, or one that is pruned already.

    Example:
        >>> import torch, pfb
        >>> _ = torch.manual_seed(0)
        >>> scenes, frames = torch.randn(100, 16), 10
        >>> x = scenes.repeat_interleave(frames, 0) + 0.01 * torch.randn(1000, 16)
        >>> data = torch.utils.data.TensorDataset(x, torch.randint(3, (1000,)))
        >>> loader = torch.utils.data.DataLoader(data, batch_size=50, shuffle=True)
        >>> layers = [torch.nn.Linear(16, 16) for _ in range(4)]
        >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 3))
        >>> advice = pfb.advise(model, loader, plan=False)
        >>> len(advice.conflicts), advice.near_copies, advice.spare
        (100, 1.0, 0.9)
    """
    _check(model, samples, features)
    device = batches.device_of(model)
    with random_states_kept(loader, device), torch.enable_grad():
        work = _copy_of(model)
        cut = cuts.resolve(work, cut)[0] if cut is not None else _first_stage(work)
        reader = Sketch() if features is None else features
        seen = survey(work, loader, prepare, reader, samples, progress)
        if len(seen.digests) < 2:
            raise ValueError("`loader` gave a single sample, and of one nothing can be told: give it more data")
        images = features is None and getattr(batches.judged(work, seen.held[0][0]), "ndim", 0) >= 4
        found = find_copies(
            seen.features,
            seen.labels,
            images=images,
            exact=True,
            on_rows=lambda rows: progress("comparing samples", rows, len(seen.digests)),
        )
        tested = None if test is None else _tested(work, test, prepare, reader, samples, seen, images, progress)
        parts = _parts(found, seen, total_of(loader))
        prune = _share_to_prune(parts.blockable)
        step_seconds, ratio, judge_ratio = _timed(work, seen, prune, loss, _own(features), parts.memory, progress)
        noise, no_noise = _noise(work, seen, loss, progress)
        planned, no_plan = _planned(work, seen, prune, cut, progress) if plan else (None, "")
    overlaps = getattr(loader, "num_workers", 0) > 0
    return Advice(
        samples=len(seen.digests),
        total=total_of(loader),
        batch_size=seen.batch_size,
        device=str(device),
        near_copies=float(found.near.double().mean()),
        groups=_numbered(found.parts, seen.index),
        blockable=parts.blockable,
        removable=parts.removable,
        duplicates=_numbered(parts.duplicates, seen.index),
        conflicts=_numbered(found.conflicts(), seen.index) if seen.labels is not None else (),
        classes=_counts(seen.labels),
        in_runs=seen.in_runs,
        constant=tuple(seen.index[i] for i in seen.constant),
        not_finite=tuple(seen.index[i] for i in seen.not_finite),
        augmented=seen.augmented,
        wait_seconds=seen.wait_beside(step_seconds, overlaps),
        step_seconds=step_seconds,
        prune=prune,
        kept_ratio=ratio,
        memory=parts.memory,
        cut=cut,
        noise=noise,
        no_noise=no_noise,
        plan=planned,
        no_plan=no_plan,
        tested=tested,
        judge_ratio=judge_ratio,
        known_indices=seen.known_indices,
        own_features=features is not None,
        mistaken=mistaken(seen.features, found.near, parts.memory),
    )


def _own(features: Callable[[Any], Tensor] | None) -> Features | None:
    """A function of the model's input, whatever its attribute ``of`` says."""
    if features is None:
        return None
    reader = FeatureReader((), features)
    reader.of = "input"
    return reader


def _check(model: nn.Module, samples: int, features: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module (got {type(model).__name__})")
    if is_wired(model):
        raise ValueError("a blocker is attached to this model, whose steps are pruned already: detach() it first")
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 2:
        raise ValueError(f"`samples` must be a whole number of at least 2 (got {samples!r})")
    if isinstance(features, Originals):
        raise ValueError(
            "`features` must be a function of the model's input (got pfb.Originals, which is to be shown each batch): "
            "leave it out, and pass a loader that does not augment"
        )


def _copy_of(model: nn.Module) -> nn.Module:
    try:
        work = copy.deepcopy(model).train()
    except Exception as error:  # whatever a class of the user's raises
        raise ValueError(f"the model cannot be copied, so that it would not stay as it is ({error})") from error
    work.zero_grad()
    return work


def _first_stage(model: nn.Module) -> str | None:
    with contextlib.suppress(ValueError):
        return cuts.find_first_stage(model)
    return next(iter(cuts.candidates(model)), None)


def _tested(
    model: nn.Module,
    test: Iterable[Any],
    prepare: Prepare | None,
    reader: Callable[[Any], Tensor],
    samples: int,
    seen: Survey,
    images: bool,
    progress: Progress,
) -> Tested:
    n = len(seen.digests)
    most = max(LEAST_TESTED, samples // 10)
    of_test: Progress = lambda what, done, total: progress(f"{what} of the test", done, total)  # noqa: E731
    other = survey(model, test, prepare, reader, most, of_test)
    total = n + len(other.digests)
    found = find_copies(
        torch.cat([seen.features, other.features]),
        images=images,
        exact=True,
        on_rows=lambda rows: of_test("comparing samples", rows, total),
    )
    in_training = {i for group in found.groups if min(group) < n for i in group if i >= n}
    near = float(found.near[n:].double().mean())
    return Tested(total - n, len(in_training) / (total - n), near, total_of(test))


@dataclass(frozen=True)
class _Parts:
    """How near-copies can be dealt with; shares of all samples."""

    blockable: float
    removable: float
    memory: int
    duplicates: tuple[tuple[int, ...], ...]


def _parts(found: Copies, seen: Survey, total: int | None) -> _Parts:
    n = len(seen.digests)
    by_digest: dict[Hashable, list[int]] = defaultdict(list)
    for i, digest in enumerate(seen.digests):
        by_digest[digest].append(i)
    duplicates = sorted((tuple(same) for same in by_digest.values() if len(same) > 1), key=lambda g: (-len(g), g))
    blockable = removable = 0
    alike = torch.maximum(found.alike, found.alike[found.nearest]).tolist()  # one at the edge is seen, too
    seen_by_memory = []
    surplus = {i for group in found.parts for i in group[1:]}  # of samples with another label one stays
    for group in found.groups:
        known = {seen.digests[group[0]]}
        for i in group[1:]:
            # A third of an epoch holds a third of those alike.
            if seen.digests[i] in known or alike[i] * (total or n) / n < 3 * SEEN_ROWS:
                removable += i in surplus
            else:
                blockable += 1
                seen_by_memory.append(alike[i])
            known.add(seen.digests[i])
    memory = _memory(seen_by_memory, n, total or n)
    return _Parts(blockable / n, removable / n, memory, tuple(duplicates))


def _memory(alike: list[int], n: int, total: int) -> int:
    """Rows in which half of the copies have three of their like; at most a third of an epoch."""
    wanted = SEEN_ROWS * n / statistics.median(alike) if alike else 0
    size = 1 << math.ceil(math.log2(max(LEAST_MEMORY, wanted)))
    return max(2, min(size, total // 3))


def _share_to_prune(blockable: float) -> float:
    if blockable < WORTH_BLOCKING:
        return USUAL_PRUNE
    return round(min(MOST_PRUNED, math.floor(blockable / PARTS + 1e-9) * PARTS), 2)


def _timed(
    model: nn.Module,
    seen: Survey,
    prune: float,
    loss: Loss | None,
    own: Features | None,
    memory: int,
    progress: Progress,
) -> tuple[float, float, float]:
    """Seconds of a training step on a batch, and, in turn, the time of one on the samples that are
    kept, and of judging the batch, as parts of it.
    """
    device, n = batches.device_of(model), seen.batch_size
    whole = batches.moved(seen.held[0], device)
    kept = keep_count(n, prune)
    few = _rows(whole, torch.arange(kept, device=device), n)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    if parameters := [p for p in model.parameters() if p.requires_grad]:
        optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)

    def step(batch: tuple[Any, Any]) -> None:
        output = batches.run(model, batch[0])
        value = objective(output, batch[1], loss)
        value = _stand_in(output) if value is None else value
        if value is not None and value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    rounds = iter(range(1, REPEATS + 3))
    timed: dict[str, Callable[[], object]] = {"whole": lambda: step(whole), "few": lambda: step(few)}
    if (judge := judging(model, *batches.arguments(whole[0]), prune, own, memory)) is not None:
        timed["judge"] = judge
    seconds = interleaved_seconds(
        timed, device, REPEATS, on_round=lambda: progress("timing steps", next(rounds), REPEATS + 2)
    )

    def ratio(name: str) -> float:
        return statistics.median(part / whole for part, whole in zip(seconds[name], seconds["whole"], strict=True))

    few_ratio = ratio("few") if kept < n else 1.0  # none is stopped
    return statistics.median(seconds["whole"]), few_ratio, ratio("judge") if judge is not None else 0.0


def _rows(batch: tuple[Any, Any], index: Tensor, n: int) -> tuple[Any, Any]:
    """Some samples of an input and its labels."""
    return tree.select(batch[0], index, n), tree.select(batch[1], index, n)


def _stand_in(output: Any) -> Tensor | None:
    """Some scalar through which gradients reach everything, where no loss is known."""
    values = [x.float().square().mean() for x in tree.leaves(output) if x.requires_grad]
    return torch.stack(values).sum() if values else None


def _noise(model: nn.Module, seen: Survey, loss: Loss | None, progress: Progress) -> tuple[NoiseScale | None, str]:
    if seen.in_runs:
        return None, "classes come in runs, so a batch is no random sample: shuffle"
    half = max(1, seen.batch_size // 2)
    halves = [
        _rows(batch, torch.arange(start, start + half), rows_of(batch[0]))
        for batch in seen.held
        for start in range(0, rows_of(batch[0]) - half + 1, half)
    ]
    if len(halves) < 2:
        return None, "it takes at least two samples in a batch, or two batches"
    done = iter(range(1, len(halves) + 1))
    try:
        found = noise_scale(model, halves, loss, lambda: progress("gradients", next(done), len(halves)))
    except Exception as error:  # a loss of the user's, or a model that cannot take half a batch
        return None, first_line(error)
    if not math.isfinite(found.loss):
        return None, f"the loss is {found.loss}"
    return found, ""


def _planned(
    model: nn.Module, seen: Survey, prune: float, cut: str | None, progress: Progress
) -> tuple[Plan | None, str]:
    x = batches.moved(seen.held[0][0], batches.device_of(model))
    rounds = iter(range(1, PLANNED + 3))
    tell = lambda: progress("timing cuts", next(rounds), PLANNED + 2)  # noqa: E731
    try:
        example: Any = dict(x) if not isinstance(x, (Tensor, tuple)) and hasattr(x, "keys") else x
        return plan(model, example, prune, cut=cut, repeats=PLANNED, on_round=tell), ""
    except Exception as error:  # no layer to cut at, or one whose output is no batch
        return None, first_line(error)


def _numbered(groups: Sequence[Sequence[int]], index: list[int]) -> tuple[tuple[int, ...], ...]:
    return tuple((index[group[0]], *sorted(index[i] for i in group[1:])) for group in groups)


def _counts(labels: Tensor | None) -> dict[int, int] | None:
    if labels is None:
        return None
    values, counts = torch.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
