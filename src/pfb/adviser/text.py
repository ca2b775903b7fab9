"""An advice in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from pfb.adviser.findings import WORTH_REMOVING, Findings

LEAK = 0.01  # of the test samples, in training
RECOMMENDED = {
    "block": "block",
    "remove": "remove these copies once",
    "smaller-batch": "use a smaller batch",
    "mend-loader": "mend the loader first",
    "nothing": "nothing to spare",
}


def headline(found: Findings) -> str:
    """What was looked at."""
    of_all = f" of {found.total:,}" if found.total is not None else ""
    return f"{found.samples:,}{of_all} samples looked at, in batches of {found.batch_size}, on {found.device}."


def rows(found: Findings) -> Iterator[tuple[str, str]]:
    """What was found, as a name and a text each."""
    yield "near-copies", _of_copies(found)
    yield "duplicates", _of_duplicates(found)
    if found.conflicts:
        yield "conflicts", _of_conflicts(found)
    if found.tested is not None:
        yield "test", _of_test(found)
    if found.classes:
        runs = "; classes come in runs: shuffle for training" if found.in_runs else ""
        yield "classes", f"{len(found.classes)}, the rarest has {found.imbalance:.2f} of the most frequent{runs}"
    broken = [f"{len(found.constant):,} constant", f"{len(found.not_finite):,} with NaN or infinity"]
    some = bool(found.constant or found.not_finite)
    yield "broken", ", ".join(broken) if some else "none is constant, NaN or infinite"
    yield "loader", _of_loader(found)
    yield "blocking", _of_blocking(found)
    if found.stops_others:
        yield "mistaken", _of_mistaken(found)
    yield "noise scale", _of_noise(found)
    if found.plan is not None:
        best = found.plan.recommended
        yield "plan", f"judged by features of the cut {best.cut!r}, {best.shallow}, a step takes {best.step_ratio:.2f}"
    elif found.no_plan:
        yield "plan", f"not made: {found.no_plan}"


def _of_copies(found: Findings) -> str:
    text = f"{found.near_copies:.1%} of the samples have one"
    if found.groups:
        sizes = ", ".join(str(len(group)) for group in found.groups[:3])
        text += f", in {_many(len(found.groups), 'group')} (largest: {sizes}); {found.spare:.1%} could be spared"
    if (least := found.least_group) is not None:
        text += f". Of a part of the data, groups of fewer than about {least:,} are mostly not seen"
    if found.augmented:
        text += (
            ". Inputs are augmented, which hides some: look again without, and if that finds more, "
            "judge by pfb.Originals()"
        )
    return text


def _of_duplicates(found: Findings) -> str:
    if not found.duplicates:
        return "none is equal to another to the last bit"
    count = sum(map(len, found.duplicates))
    return f"{count:,} samples in {_many(len(found.duplicates), 'group')} equal to the last bit"


def _of_conflicts(found: Findings) -> str:
    few = "; ".join(", ".join(map(str, group[:4])) for group in found.conflicts[:3])
    return (
        f"{_many(len(found.conflicts), 'group')} of near-copies with different labels (indices {few}, ...): one of "
        "each label is kept; look at them, in advice.conflicts"
    )


def _of_test(found: Findings) -> str:
    tested = found.tested
    assert tested is not None
    leak = ", which flatters its figures" if tested.in_training >= LEAK else ""
    part = tested.total is not None and tested.samples < tested.total
    of_all = f"{tested.samples:,} of {tested.total:,}" if part else f"{tested.samples:,}"
    return (
        f"of {of_all} samples {tested.in_training:.1%} have a near-copy in training{leak}; "
        f"{tested.near_copies:.1%} there or in {'this part of ' if part else ''}the test"
    )


def _of_loader(found: Findings) -> str:
    step = f"a step takes {_seconds(found.step_seconds)}"
    if found.wait_seconds is None:
        return f"{step}; waiting not measured, there was only one batch"
    return f"{step} after waiting {_seconds(found.wait_seconds)} for its batch: {found.waiting:.0%} of the time"


def _of_blocking(found: Findings) -> str:
    by = "your features" if found.own_features else "a sketch of the input"
    judged = "at random" if found.test_repeats_itself else f"{found.judge_ratio:.2f} to judge them by {by}"
    return (
        f"a step with {found.prune:.0%} stopped takes {found.kept_ratio:.2f} of a whole one, and {judged}; "
        f"saves at most {found.most_saved:.0%} of the time"
    )


def _of_mistaken(found: Findings) -> str:
    return (
        f"{found.mistaken:.0%} of the samples are no near-copies, but blocking by density would stop them as if they "
        "were: a minority that is more alike than the rest or lies apart, or data of few dimensions"
    )


def _of_noise(found: Findings) -> str:
    noise = found.noise
    if noise is None:
        return f"not measured: {found.no_noise}"
    lost = not math.isfinite(noise.samples) or noise.samples > noise.seen
    size = f"more than {noise.seen:,}" if lost else f"about {max(1, round(noise.samples)):,}"
    text = f"{size} samples at these weights, the batch has {found.batch_size}"
    if noise.untrained is None:
        return f"{text} (whether they are trained cannot be told of this loss: it grows a lot in training)"
    return text + (" (untrained weights: it grows a lot in training)" if noise.untrained else "")


# Why, and what to do


def _block(found: Findings) -> str:
    rest = found.removable
    also = f" Another {rest:.0%} are few or equal copies, which no memory sees." if rest >= 0.01 else ""
    return (
        f"{found.blockable:.0%} of the samples repeat others in groups large enough to be seen while training. "
        f"Stopping {found.prune:.0%} of each batch saves up to {found.most_saved:.0%} of the time, "
        f"{_which(found)}{also} What was measured ended on full data: prune=pfb.window({found.prune:g}, stop=0.875), "
        "total_steps=... in the line below."
    )


def _which(found: Findings) -> str:
    if found.test_repeats_itself:
        return "at random: what you test on repeats itself, too, where to spare copies was no better than chance."
    known = "mostly on these, and each still comes by now and then."
    if found.stops_others:
        known += (
            f" But {found.mistaken:.0%} of the samples, which are no copies, would be stopped like them (row "
            '"mistaken"): if they matter, pass `features=` in which they lie among the rest, or stop at random.'
        )
    if found.own_features:
        known += ' (`features` is your function, with the attribute `of = "input"`.)'
    if found.test_is_new:
        return f"{known} What you test on does not repeat itself as much, which is where it pays."
    return f"{known} If what you test on repeats itself as much, stop at random: importance=pfb.Uniform()."


def _remove(found: Findings) -> str:
    idle = found.repeats_enough and not found.blocking_is_shorter
    large = f" (it lists those of larger groups, too: {found.spare:.0%} in all)" if found.blockable >= 0.005 else ""
    where = (
        f"drop what `advice.to_drop` lists{large}"
        if found.known_indices
        else "drop them. The loader shuffles, so that indices only count its order: look again with shuffle=False, or "
        "return the index of each sample from `prepare=`, to be told which"
    )
    return (
        f"{found.removable:.0%} of the samples are equal to others, or copies too few for blocking to see: {where}, "
        "and every epoch is shorter at once"
        + (f", which blocking would not be: on this device {_idle_because(found)}." if idle else ".")
    )


def _idle_because(found: Findings) -> str:
    if not found.small_batch_is_shorter:
        return "a step on fewer samples takes as long as one on all"
    return f"a pruned step of so small a model takes {found.blocked_ratio:.2f} of a whole one, with what judges it"


def _smaller_batch(found: Findings) -> str:
    assert found.noise is not None
    samples = max(1.0, found.noise.samples)
    return (
        f"{found.spare:.1%} of the samples could be spared, but a batch of {found.batch_size} is "
        f"{found.batch_size / samples:.0f} times the gradient noise scale, where more samples hardly better a step: "
        f"try {2 ** max(0, math.ceil(math.log2(samples)))} with as many steps, and a learning rate to match."
    )


def _mend_loader(found: Findings) -> str:
    if found.not_finite:
        shown = ", ".join(map(str, found.not_finite[:5])) + (", ..." if len(found.not_finite) > 5 else "")
        which = "indices" if found.known_indices else "in the order of this pass"
        return (
            f"NaN or infinity is in {_many(len(found.not_finite), 'sample')} ({which} {shown}), and one is enough "
            "to spoil the weights: repair or drop them."
        )
    copies = f" Copies need not be loaded: {found.spare:.0%} could go." if found.spare >= WORTH_REMOVING else ""
    return (
        f"{found.waiting:.0%} of the time is spent waiting for data, where blocking saves nothing (at most "
        f"{found.most_saved:.0%} of the whole): use more workers, faster decoding or smaller files.{copies}"
    )


def _nothing(found: Findings) -> str:
    if found.repeats_enough:
        return (
            f"{found.blockable:.0%} of the samples repeat others, but on this device {_idle_because(found)}: try a "
            "larger batch, then ask again. Else train fewer epochs."
        )
    return (
        f"{found.spare:.1%} of the samples could be spared: to spend less, train fewer epochs. On data that do not "
        "repeat themselves that is as good as any choice of samples. In so many epochs that they are known by heart, "
        "stopping samples at random was better: importance=pfb.Uniform()."
    )


REASONS: dict[str, Callable[[Findings], str]] = {
    "block": _block,
    "remove": _remove,
    "smaller-batch": _smaller_batch,
    "mend-loader": _mend_loader,
    "nothing": _nothing,
}


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
