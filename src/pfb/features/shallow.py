"""Features of the model's own shallow part, for a choice before the model runs: a pass without
graph up to a cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pfb.features.base import Features
from pfb.features.cut import CutFeatures, channel_layers
from pfb.model import cuts
from pfb.model.inputs import arguments, split
from pfb.model.scoring_pass import output_of, scoring_mode
from pfb.model.side_effects import SideEffects


class Shallow(Features):
    """The paper's features before the model: its shallow part runs on the whole batch, without
    graph, in evaluation mode, and leaves no trace (buffers, caches, random numbers); then the kept
    samples go through the whole model. For models in which something bypasses the cut.

    ``pfb.BatchPruner(features=pfb.Shallow(model), rule=pfb.RareFirst())`` chooses as
    :func:`pfb.attach` does but for dropout and batch statistics; a step costs ``1 - p + s / 3`` of
    a full one, with s the shallow part's share of a forward.

    Args:
        model: any module; also one that is compiled or wrapped by DistributedDataParallel.
        cut: the layer whose output is read: its name, the module, or ``None`` for the first stage.
        spread: standard deviations beside the averages over all but samples and channels.
        channel_dim: where the cut's output has its channels, if it cannot be told.
        batch_dim: where it has its samples.

    Raises:
        TypeError, ValueError: no such cut; the message lists candidates.

    Example:
        >>> import torch, pfb
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
        >>> pruner = pfb.BatchPruner(0.4, features=pfb.Shallow(model, "0"), rule=pfb.RareFirst())
        >>> x, y = pruner(torch.randn(10, 4), torch.randint(3, (10,)))
        >>> model(x).shape, y.shape
        (torch.Size([6, 3]), torch.Size([6]))
    """

    name = "shallow"

    def __init__(
        self,
        model: nn.Module,
        cut: str | nn.Module | None = None,
        *,
        spread: bool = False,
        channel_dim: int | None = None,
        batch_dim: int = 0,
    ) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        model = getattr(model, "_orig_mod", model)  # of torch.compile
        self.cut, module = cuts.resolve(model, cut)
        self._model, self._module = model, module
        self._read = CutFeatures(channel_layers(module, model), None, None, channel_dim, batch_dim, spread)
        self._side_effects = SideEffects()

    def candidates(self, batch: Any) -> Iterator[tuple[str, Any]]:
        yield "the model's input", split(batch, self._model)[0]

    def refusal(self, batch: Any) -> str:
        return "pass `by=`, what the model takes: a tensor, a tuple of positional or a dict of keyword arguments"

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # traced, its traces could not be undone
    @torch.no_grad()
    def __call__(self, x: Any) -> Tensor:
        """Features ``[N, D]`` of a batch as the model takes it: a tensor, a tuple of positional or
        a dict of keyword arguments.

        Raises:
            RuntimeError: the forward does not reach the cut.
        """
        model, module = self._model, self._module
        args, kwargs = arguments(x)
        devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
        try:
            with (
                torch.random.fork_rng(devices),
                self._side_effects.undone(model, (args, kwargs)) as (args, kwargs),
                scoring_mode(model),
            ):
                return self._read(output_of(model, module, args, kwargs))
        except Exception as error:
            error.add_note(
                f"pfb: this is the scoring pass of pfb.Shallow: {type(model).__name__} on the whole batch, without "
                f"gradients and in evaluation mode, up to {self.cut!r}. If the model takes another part of the batch, "
                "say which: `by=`."
            )
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "pfb.Shallow belongs to one model and cannot be copied or pickled: make a new one beside the copied model"
        )
