"""Run a model up to one of its layers, in the mode in which samples are scored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pfb.model.side_effects import as_in_training


class Reached(Exception):
    """Carries the cut's output, its only argument, out of a pass that ends there.

    It has no ``__init__`` of its own: up to torch 2.14 the compiler cannot trace one in an
    exception.
    """


@torch.no_grad()
def output_of(model: nn.Module, cut: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the cut gives for these inputs of the model, without graph; the layers after it do not
    run.
    """

    def catch(module: nn.Module, args: Any, output: Any) -> None:
        raise Reached(output)

    handle = cut.register_forward_hook(catch, prepend=True)
    try:
        with as_in_training():
            model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]  # hooks, but never compiled code
    except Reached as reached:
        return reached.args[0]
    finally:
        handle.remove()
    raise RuntimeError(f"the forward of {type(model).__name__} did not reach the cut")


@contextlib.contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the scoring pass, then every module's own mode again. So no running
    statistic of a BatchNorm moves here: it moves once per step, in the forward proper.
    """
    was_training = {m: m.training for m in model.modules()}
    try:
        for m in was_training:
            m.training = False
        yield
    finally:
        for m, training in was_training.items():
            m.training = training
