"""From a slim program on meta to a module: weights, modes, names.

1. Weights are copied last, once, and only survivors. Silent atoms (plan.py, clause 4) are zeroed where they are read.
2. Every module has the mode of the original's. A module that the original also knows by another name keeps that name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from fxprune.capture.clone import walk
from fxprune.graph.channels import ChannelGraph
from fxprune.plan import Kept
from fxprune.provenance.factor import Ids
from fxprune.provenance.ledger import Axis
from fxprune.rewrite.module import SlimModule
from fxprune.rewrite.slicing import LARGEST_CHUNK, SMALLEST_CHUNK, STATISTICS, Indices, flush, like, silence, take

Modules = Sequence[tuple[str, nn.Module]]  # those of the slim program, in the order of the original's


def fill(graph: ChannelGraph, modules: Modules, by_name: dict[str, list[Axis]], order: Mapping[Axis, Ids], silent: Kept) -> None:
    """Clause 1: real tensors in the place of the meta ones."""
    captured = graph.program.captured
    names = {id(tensor): name for name, tensor in captured.tensors.items()}
    copies: dict[int, Tensor] = {}
    indices: Indices = {}
    total = sum(tensor.numel() * tensor.element_size() for tensor in captured.tensors.values())
    chunk = min(max(total // 64, SMALLEST_CHUNK), LARGEST_CHUNK)

    def copy(old: Tensor) -> Tensor:
        found = copies.get(id(old))
        if found is None:
            name = names.get(id(old), "")
            axes = by_name.get(name, ())
            new = take(old, axes, order, chunk, indices)
            if isinstance(old, nn.Parameter) or name.endswith(STATISTICS):
                flush(new)
            if name in silent:
                silence(new, old.shape, axes, order, silent[name])
            found = copies[id(old)] = like(old, new)
        return found

    for (_, target), (_, source) in zip(modules, captured.modules, strict=True):
        stores: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (target._parameters, source._parameters),
            (target._buffers, source._buffers),
        ]
        for new, own in stores:
            new.update({key: old if old is None else copy(old) for key, old in own.items()})
        for key, value in source.__dict__.items():
            if isinstance(value, Tensor):
                target.__dict__[key] = copy(value)
        if "_flat_weights_names" in target.__dict__:
            target.__dict__["_flat_weights"] = [getattr(target, name) for name in target.__dict__["_flat_weights_names"]]
        target.__dict__.pop("_fxprune_fitted", None)


def assemble(graph: ChannelGraph, modules: Modules, new: fx.Graph) -> fx.GraphModule:
    """Clause 2."""
    captured = graph.program.captured
    for (_, target), (_, source) in zip(modules, captured.modules, strict=True):
        target.__dict__["training"] = source.training
    slim = SlimModule(modules[0][1], new, captured.name)
    _alias(slim, captured.root, captured.modules)
    originals = dict(captured.modules)
    for name, module in walk(slim):
        own = originals.get(name)
        module.__dict__["training"] = slim.training if own is None else own.training
        if module._buffers:  # fx turns plain tensor attributes into buffers; the state dict shall not show them
            shown = set() if own is None else own._buffers.keys() - own._non_persistent_buffers_set
            module._non_persistent_buffers_set.update(module._buffers.keys() - shown)
    return slim


def _alias(slim: fx.GraphModule, root: nn.Module, known: Modules) -> None:
    """A module that the original also knows by another name keeps that name, and its state-dict keys."""
    if sum(child is not None for _, module in known for child in module._modules.values()) == len(known) - 1:
        return
    first = {id(module): name for name, module in known}
    present = {name for name, _ in walk(slim)}
    for name, module in root.named_modules(remove_duplicate=False):
        own = first[id(module)]
        if name != own and own in present and name not in present:
            parent: nn.Module = slim
            *path, leaf = name.split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            if leaf not in parent._modules:
                parent.add_module(leaf, slim.get_submodule(own))
