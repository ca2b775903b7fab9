"""Features that drift slowly: the scoring pass runs on a moving average of the shallow weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pfb.features.cut import FeatureReader
from pfb.utils import distributed as sync

RATE = 0.99


class Momentum(FeatureReader):
    """Means and standard deviations of the cut's output under averaged weights,
    ``features="momentum"``.

    What a memory holds was read by the weights of earlier steps, and fits those of the present ones
    only if they hardly differ. Averaged are all parameters and BatchNorm statistics of the modules
    that are registered before the cut or lie inside it, ``a <- 0.99 a + 0.01 w`` in every step,
    also while nothing is stopped; the averages are held in float32 at least.

    Args:
        cut: its name in the model.
        layers, feature_dim, channel_dim, batch_dim: see :class:`~pfb.features.cut.FeatureReader`.
    """

    def __init__(
        self,
        cut: str,
        layers: tuple[tuple[int, int], ...],
        feature_dim: int | None = None,
        channel_dim: int | None = None,
        batch_dim: int = 0,
    ) -> None:
        super().__init__(layers, None, feature_dim, channel_dim, batch_dim, spread=True)
        self.name = "momentum"
        self._cut = cut
        self._averages: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def as_scored(self, model: nn.Module) -> Iterator[None]:
        """Inside, the averages stand in the live tensors' places."""
        places = [(_place(model, name), average) for name, average in self._averages.items()]
        live = [(tensors, name, tensors[name]) for (tensors, name), _ in places]
        try:
            for (tensors, name), average in places:
                tensors[name] = average.to(tensors[name].dtype)
            yield
        finally:
            for tensors, name, tensor in live:
                tensors[name] = tensor

    @torch.no_grad()
    def step(self, model: nn.Module, talk: bool) -> None:
        """Move the averages towards the weights. With ``talk`` ranks average their statistics,
        which differ, in one collective; weights are equal on all.

        Raises:
            TypeError: the weights are sharded over ranks.
        """
        tensors = _shallow(model, self._cut)
        for name, x in tensors.items():
            if hasattr(x, "full_tensor"):
                raise TypeError(
                    f'features="momentum" cannot average {name!r}, which is sharded over ranks. Use features="sketch".'
                )
            average = self._averages.get(name)
            if average is None:
                self._averages[name] = x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True)
            elif average.device != x.device:
                average = self._averages[name] = average.to(x.device)
            if average is not None:
                average.lerp_(x.detach().to(average.dtype), 1 - RATE)
        statistics = [self._averages[name] for name in tensors if name.endswith(("running_mean", "running_var"))]
        if talk and statistics and sync.world_size() > 1:
            flat = torch.cat(statistics) / sync.world_size()
            sync.sum_over_ranks(flat)
            for average, mean in zip(statistics, torch.split(flat, [len(x) for x in statistics]), strict=True):
                average.copy_(mean)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._averages)

    def check_state(self, state: dict[str, Tensor], model: nn.Module) -> None:
        shapes = {name: tuple(x.shape) for name, x in state.items()}
        ours = {name: tuple(x.shape) for name, x in _shallow(model, self._cut).items()}
        if shapes and shapes != ours:  # none before the first step
            differs = sorted(name for name in shapes.keys() | ours.keys() if shapes.get(name) != ours.get(name))
            raise ValueError(
                f"the state's averaged weights are another model's: {differs[0]!r} has shape {shapes.get(differs[0])} "
                f"there and {ours.get(differs[0])} here; attach to the model it was saved with"
            )

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._averages = {name: average.detach().clone() for name, average in state.items()}


def _shallow(model: nn.Module, cut: str) -> dict[str, Tensor]:
    """Floating parameters and BatchNorm statistics up to the cut, in order of registration."""
    modules = dict(model.named_modules())
    names = list(modules)
    up_to_cut = [*names[: names.index(cut)], *(name for name in names if name == cut or name.startswith(f"{cut}."))]
    found: dict[str, Tensor] = {}
    for name in up_to_cut:
        m, prefix = modules[name], f"{name}." if name else ""
        found |= {prefix + key: p for key, p in m._parameters.items() if p is not None and p.is_floating_point()}
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None and m.running_var is not None:
            found |= {f"{prefix}running_mean": m.running_mean, f"{prefix}running_var": m.running_var}
    return found


def _place(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dict of a module that holds a tensor, and its key there."""
    path, _, key = name.rpartition(".")
    m = model.get_submodule(path)
    return (m._parameters if key in m._parameters else m._buffers), key
