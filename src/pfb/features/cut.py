"""From the output of any layer to one feature vector per sample: what the paper judges by.

Shape suffixes: N samples, T tokens, C channels, H W space, D feature dimensions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pfb.density.kernels import full_precision
from pfb.features.base import checked_features
from pfb.selection.nested import leaves


class CutFeatures:
    """Features ``[N, D]`` of a cut's output, in float32 and without graph; reads only.

    Args:
        layers: what :func:`channel_layers` says of the cut.
        features: callable from the cut's output to ``[N, D]``, instead of averaging over all but
            samples and channels.
        feature_dim: reduce wider features to so many dimensions by :func:`random_projection`.
        channel_dim: where the output has its channels; ``None``: inferred at the first one.
        batch_dim: where the output has its samples.
        spread: standard deviations beside the averages, ``[N, 2 C]``: a dense region is told apart
            far better by both, in a density that is local.

    Example:
        >>> import torch
        >>> CutFeatures(layers=())(torch.ones(2, 5, 8)).shape  # tokens [N, T, C]
        torch.Size([2, 8])
    """

    def __init__(
        self,
        layers: tuple[tuple[int, int], ...],
        features: Callable[[Any], Tensor] | None = None,
        feature_dim: int | None = None,
        channel_dim: int | None = None,
        batch_dim: int = 0,
        spread: bool = False,
    ) -> None:
        if feature_dim is not None and (type(feature_dim) is not int or feature_dim < 1):
            raise ValueError(f"`feature_dim` must be None or a whole number of at least 1 (got {feature_dim!r})")
        if channel_dim is not None and type(channel_dim) is not int:
            raise ValueError(f"`channel_dim` must be None or a whole number, such as 1 or -1 (got {channel_dim!r})")
        self.name = "callable" if features is not None else "cut-spread" if spread else "cut"
        self.batch_dim, self._spread = batch_dim, spread
        self._layers, self._features, self._feature_dim = layers, features, feature_dim
        self._channel_dim = channel_dim

    @torch.no_grad()
    def __call__(self, output: Any) -> Tensor:
        """Read the features.

        Raises:
            TypeError: the output holds no floating-point tensor ``[N, ...]``.
            ValueError: it cannot be told which dimension holds the channels, the one that was named
                does not, or the callable returned something else than ``[N, D]``.
        """
        if self._features is not None:
            return self._reduced(checked_features(self._features(output), "`features`"))
        x = batched_tensor(output).movedim(self.batch_dim, 0)
        if self._channel_dim is None:
            self._channel_dim = infer_channel_dim(x.shape, self._layers)
        elif not (0 < self._channel_dim < x.dim() or -x.dim() < self._channel_dim < 0):
            raise ValueError(
                f"`channel_dim` must be a dimension beside that of the samples, 0, of the cut's output "
                f"{tuple(x.shape)} (got {self._channel_dim}): 1 for [N, C, H, W], -1 for [N, H, W, C] and [N, T, C]"
            )
        return self._reduced(mean_and_spread(x, self._channel_dim) if self._spread else pool(x, self._channel_dim))

    def _reduced(self, wide_NC: Tensor) -> Tensor:
        if self._feature_dim is None or wide_NC.size(1) <= self._feature_dim:
            return wide_NC
        with full_precision(wide_NC.device):
            return wide_NC @ random_projection(wide_NC.size(1), self._feature_dim, wide_NC.device)


def batched_tensor(output: Any) -> Tensor:
    """The tensor of a layer's output that carries the features: the first floating one with a batch
    dimension.

    Raises:
        TypeError: there is none.
    """
    for leaf in leaves(output):
        if leaf.is_floating_point() and leaf.dim() >= 2:
            return leaf
    raise TypeError(
        f"the cut's output holds no floating-point tensor of shape [N, ...] (got {type(output).__name__}). Choose "
        "another layer, or pass `features=` a callable that takes the output and returns [N, D]."
    )


def pool(x: Tensor, channel_dim: int) -> Tensor:
    """Average everything but samples and channels, in float32: ``[N, ..., C, ...]`` to ``[N, C]``.

    Example:
        >>> import torch
        >>> pool(torch.ones(2, 7, 7, 96), channel_dim=-1).shape  # Swin: [N, H, W, C]
        torch.Size([2, 96])
    """
    space = [d for d in range(1, x.dim()) if d != channel_dim % x.dim()]
    x = x.detach()
    return x.mean(space, dtype=torch.float32) if space else x.float()


def mean_and_spread(x: Tensor, channel_dim: int) -> Tensor:
    """Average and standard deviation over everything but samples and channels, in float32: ``[N,
    ..., C, ...]`` to ``[N, 2 C]``; ``[N, C]`` has no spread and stays.

    Example:
        >>> import torch
        >>> mean_and_spread(torch.tensor([[[1.0, 3.0], [5.0, 5.0]]]), channel_dim=1)
        tensor([[2., 5., 1., 0.]])
    """
    x = x.detach().float()
    space = [d for d in range(1, x.dim()) if d != channel_dim % x.dim()]
    if not space:
        return x
    mean, deviation = mean_and_deviation(x, space)
    return torch.cat([mean.flatten(1), deviation.flatten(1)], 1)


def mean_and_deviation(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Average and standard deviation over some dimensions, which stay as 1; unlike ``Tensor.std``
    silent on a batch of none.
    """
    mean = x.mean(dims, keepdim=True)
    return mean, (x - mean).square_().mean(dims, keepdim=True).sqrt()


def fingerprint(x: Tensor) -> Tensor:
    """One number per sample, ``[N, ...]`` to ``[N, 1]``: nothing to choose by, but enough to know a
    batch again.

    Example:
        >>> import torch
        >>> fingerprint(torch.arange(6).reshape(2, 3))
        tensor([[1.],
                [4.]])
    """
    x = x.detach().unsqueeze(-1)  # so that there is something to average over in [N], too
    return x.mean(list(range(1, x.dim())), dtype=torch.float32).unsqueeze(1)


def random_projection(channels: int, dims: int, device: torch.device | str = "cpu") -> Tensor:
    """A fixed Gaussian map ``[C, D]`` that keeps distances in the mean (Johnson and Lindenstrauss,
    1984).

    It is the same on every device, rank and run, so it need not be saved.
    """
    drawn: Tensor = fixed_normal(channels, dims, device=device, divisor=math.sqrt(dims))
    return drawn


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def fixed_normal(*shape: int, device: torch.device | str, divisor: float = 1.0) -> Tensor:
    """Normal numbers, the same everywhere and not to be changed; a constant of a compiled graph,
    which may hold no generator.
    """
    return _drawn(shape, divisor, device)


@functools.lru_cache(maxsize=32)
def _drawn(shape: tuple[int, ...], divisor: float, device: torch.device | str) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(0)
    return (torch.randn(shape, generator=generator, device="cpu") / divisor).to(device)


def channel_layers(cut: nn.Module, model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Channel dimension and count of each layer inside the cut that has them, or of those
    registered before it.
    """
    inside = [known for m in cut.modules() if (known := _axis_and_channels(m)) is not None]
    if inside:
        return tuple(inside)
    modules = list(model.modules())
    before = modules[: next(i for i, m in enumerate(modules) if m is cut)]
    return tuple(known for m in before if (known := _axis_and_channels(m)) is not None)


def infer_channel_dim(shape: torch.Size | tuple[int, ...], layers: tuple[tuple[int, int], ...]) -> int:
    """Which dimension of an output of this shape holds the channels, given :func:`channel_layers`
    of the cut.

    Two dimensions have one answer. Otherwise the layers tell: where all of them are of one kind
    (convolutions and their norms: dimension 1; linear layers and LayerNorm: the last), that kind
    decides if the size fits; where kinds mix (ConvNeXt), the one dimension as large as the last
    layer's channel count. Convolutions alone whose outputs are concatenated have their channels in
    dimension 1. Three dimensions without any such layer are tokens ``[N, T, C]``.

    Raises:
        ValueError: no or several dimensions qualify; the message asks for ``channel_dim``.

    Example:
        >>> infer_channel_dim((8, 64, 56, 56), layers=((1, 64), (1, 64)))
        1
    """
    if len(shape) == 2:
        return 1
    if layers:
        axes = {axis for axis, _ in layers}
        channels = layers[-1][1]
        fitting = [d for d in range(1, len(shape)) if shape[d] == channels]
        if len(axes) == 1 and shape[axis := next(iter(axes)) % len(shape)] in {count for _, count in layers}:
            return axis
        if len(fitting) == 1:
            return fitting[0]
        if not fitting and axes == {1} and len(shape) >= 4:
            return 1  # convolutions whose outputs are concatenated: DenseNet, SqueezeNet, ShuffleNet
    elif len(shape) == 3:
        return 2
    raise ValueError(
        f"cannot tell which dimension of the cut's output {tuple(shape)} holds the channels. Pass `channel_dim=1` for "
        "[N, C, H, W] or `channel_dim=-1` for [N, H, W, C] and [N, T, C]."
    )


def _axis_and_channels(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.modules.conv._ConvNd):
        return 1, module.out_channels
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return 1, module.num_features
    if isinstance(module, nn.GroupNorm):
        return 1, module.num_channels
    if isinstance(module, nn.Linear):
        return -1, module.out_features
    if isinstance(module, nn.RNNBase):
        return -1, (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        # torchvision and timm call the LayerNorm over the channels of [N, C, H, W] LayerNorm2d.
        return (1 if "2d" in type(module).__name__ else -1), module.normalized_shape[0]
    return None
