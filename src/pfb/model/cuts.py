"""Where to cut: resolve the user's choice, or find the first stage of a model by its structure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from torch import nn

MOST_NAMED = 12


def resolve(model: nn.Module, cut: str | nn.Module | None) -> tuple[str, nn.Module]:
    """Name and module of the cut.

    Raises:
        TypeError: neither a name nor a module.
        ValueError: unknown name, foreign module, the model itself, or no first stage to be found.
    """
    name = find_first_stage(model) if cut is None else _named(model, cut)
    if not name:
        raise ValueError(f"`cut` is the model itself, after which nothing is left to save. {_say_candidates(model)}")
    module = model.get_submodule(name)
    if not _runs_itself(module):
        raise ValueError(
            f"`cut` is {name!r}, a {type(module).__name__}, which holds layers but never runs itself. Cut after its "
            f"last layer: {_last_called(name, module)!r}."
        )
    return name, module


def _named(model: nn.Module, cut: str | nn.Module) -> str:
    names: dict[str, nn.Module] = dict(model.named_modules())
    if isinstance(cut, nn.Module):
        if (name := next((name for name, module in names.items() if module is cut), None)) is not None:
            return name
        raise ValueError(f"`cut` is a {type(cut).__name__} that is not part of the model. {_say_candidates(model)}")
    if not isinstance(cut, str):
        raise TypeError(f"`cut` must be a layer's name, a module of the model or None (got {type(cut).__name__})")
    if cut not in names:
        near = difflib.get_close_matches(cut, names, n=3)
        hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"`cut` must name a layer of the model (got {cut!r}). {hint}{_say_candidates(model)}")
    return cut


def find_first_stage(model: nn.Module) -> str:
    """Name of the first stage: where the paper cuts.

    The model's trunk is the first run of blocks (a ``Sequential``, a ``ModuleList``, or attributes
    numbered like ``layer1 ... layer4``) that holds at least half of all layers with parameters. In
    a trunk of equal blocks (a transformer) the first sixth is taken: block 2 of 12. In a staged one
    it is the first stage that is more than a stem; in a flat one (VGG) everything up to the first
    pooling.

    Raises:
        ValueError: no such trunk; the message lists candidates.

    Example:
        >>> import torchvision
        >>> find_first_stage(torchvision.models.resnet18())
        'layer1'
    """
    trunk = _trunk(model, "")
    if trunk is not None:
        chosen = _first_stage_of(trunk)
        if chosen is not None and not _is_decoder_of_two(model, chosen):
            return _last_called(chosen, model.get_submodule(chosen))
    raise ValueError(f"cannot tell the first stage of {type(model).__name__}: pass `cut=`. {_say_candidates(model)}")


def _trunk(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]] | None:
    half = 0.5 * _layers_of([module])
    for run in _runs(module, prefix):
        if _layers_of([m for _, m in run]) >= half:
            if len(run) > 1:
                return run
            return _trunk(run[0][1], run[0][0])
    for name, child in module.named_children():
        if _layers_of([child]) >= half:
            return _trunk(child, f"{prefix}.{name}" if prefix else name)
    return None


def _runs(module: nn.Module, prefix: str) -> Iterator[list[tuple[str, nn.Module]]]:
    """Blocks that follow each other: the items of a container, or attributes that differ in their
    number only.
    """
    children = [(f"{prefix}.{name}" if prefix else name, name, child) for name, child in module.named_children()]
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        yield [(path, child) for path, _, child in children]
        return
    groups: dict[str, list[tuple[str, nn.Module]]] = {}
    for path, name, child in children:
        if isinstance(child, (nn.Sequential, nn.ModuleList)) and len(child) > 1 and not re.search(r"\d+$", name):
            yield [(f"{path}.{i}", item) for i, item in child.named_children()]
        elif match := re.fullmatch(r"(.*?)\d+", name):
            groups.setdefault(match[1], []).append((path, child))
    yield from (run for run in groups.values() if len(run) > 1)


def _first_stage_of(run: list[tuple[str, nn.Module]]) -> str | None:
    blocks = [(name, m) for name, m in run if _layers_of([m])]
    sizes = {(type(m), sum(p.numel() for p in m.parameters())) for _, m in blocks}
    if len(blocks) >= 3 and len(sizes) == 1 and _layers_of([blocks[0][1]]) > 2:
        return blocks[max(0, round(len(blocks) / 6) - 1)][0]
    stages = [name for name, m in run if _layers_of([m]) > 2]
    small_stages = [name for name, m in run if _layers_of([m]) > 1]
    pools = [name for name, m in run if re.search("pool", type(m).__name__, re.IGNORECASE)]
    return next(iter(stages or pools or small_stages), None)


def _last_called(name: str, module: nn.Module) -> str:
    """The module itself, or the last layer in a container that never runs itself."""
    while not _runs_itself(module) and (children := list(module.named_children())):
        last, module = children[-1]
        name = f"{name}.{last}"
    return name


def _runs_itself(module: nn.Module) -> bool:
    """False for containers without a forward: ``ModuleList``, ``ModuleDict``."""
    return type(module).forward is not nn.Module.forward


def _is_decoder_of_two(model: nn.Module, name: str) -> bool:
    """In an encoder-decoder model a cut inside the decoder would leave the encoder's output
    unselected.
    """
    return "decoder" in name.split(".") and any(n.split(".")[-1] == "encoder" for n, _ in model.named_modules())


def _layers_of(modules: list[nn.Module]) -> int:
    """How many modules own parameters themselves."""
    return sum(1 for root in modules for m in root.modules() if next(m.parameters(recurse=False), None) is not None)


def _say_candidates(model: nn.Module) -> str:
    """Layers one would cut at, in order: the blocks of the model's trunks, else its children with
    parameters.
    """
    names: list[str] = []
    for prefix, module in model.named_modules():
        for run in _runs(module, prefix):
            if _layers_of([m for _, m in run]) > 0.2 * _layers_of([model]):
                names += [name for name, m in run if _layers_of([m]) > 1 and name not in names]
    names = names or [name for name, m in model.named_modules() if name and "." not in name and _layers_of([m])]
    if names:
        return f"Candidates: {', '.join(names[:MOST_NAMED])}."
    return "It has no layers to choose from: prune before it, pfb.BatchPruner(), which needs none."
