"""Small nets, hand-made plans and hand-sliced slim modules: an oracle for the verifier that shares no code with it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from fxprune.plan import Plan

Axes = Mapping[str, Mapping[int, Sequence[int]]]


def randomised(model: nn.Module, seed: int = 0) -> fx.GraphModule:
    """Trace a model whose norms have random parameters and statistics."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.data = noise.abs() + 0.5 if name.endswith("running_var") else noise * (0.4 if tensor.ndim > 1 else 1.0)
    return fx.symbolic_trace(model)


def plan_for(net: nn.Module, kept: Axes, sizes: Mapping[str, Mapping[int, int]] | None = None, layout: str = "coupled") -> Plan:
    """A plan from kept indices; the number of atoms is the size of the dimension unless it is given."""
    state = net.state_dict()
    given = sizes or {}
    return Plan(
        kept={name: {d: tuple(rows) for d, rows in dims.items()} for name, dims in kept.items()},
        sizes={name: {d: given.get(name, {}).get(d, state[name].shape[d]) for d in dims} for name, dims in kept.items()},
        layout=layout,
    )


def channels(*names: str, rows: Sequence[int]) -> dict[str, dict[int, Sequence[int]]]:
    """The axes of producers: ``conv`` stands for weight rows and bias, ``bn*`` for the four vectors, ``*.in`` for readers."""
    axes: dict[str, dict[int, Sequence[int]]] = {}
    for name in names:
        base, _, kind = name.partition(":")
        if kind == "in":
            axes.setdefault(f"{base}.weight", {})[1] = rows
        elif kind == "norm":
            for part in ("weight", "bias", "running_mean", "running_var"):
                axes[f"{base}.{part}"] = {0: rows}
        elif kind == "affine":
            axes[f"{base}.weight"] = {0: rows}
            axes[f"{base}.bias"] = {0: rows}
        elif kind == "rows":
            axes.setdefault(f"{base}.weight", {})[0] = rows
        else:
            axes.setdefault(f"{base}.weight", {})[0] = rows
            axes[f"{base}.bias"] = {0: rows}
    return axes


def merged(*parts: Axes) -> dict[str, dict[int, Sequence[int]]]:
    """One set of axes from several."""
    result: dict[str, dict[int, Sequence[int]]] = {}
    for part in parts:
        for name, dims in part.items():
            result.setdefault(name, {}).update(dims)
    return result


def sliced(net: fx.GraphModule, kept: Axes, **attributes: Any) -> fx.GraphModule:
    """A copy whose parameters are gathered by hand; attributes are given as ``module__attribute=value``."""
    slim = copy.deepcopy(net)
    for name, dims in kept.items():
        path, _, leaf = name.rpartition(".")
        owner = slim.get_submodule(path)
        tensor = getattr(owner, leaf).data
        for dim, rows in dims.items():
            tensor = tensor.index_select(dim, torch.tensor(list(rows), dtype=torch.long))
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(tensor)
        else:
            owner._buffers[leaf] = tensor
    for name, value in attributes.items():
        path, _, leaf = name.rpartition("__")
        setattr(slim.get_submodule(path.replace("__", ".")), leaf, value)
    return slim


def poisoned(net: fx.GraphModule, kept: Axes) -> fx.GraphModule:
    """The original with NaN in every element that the plan removes: nothing dead may leak."""
    result = copy.deepcopy(net)
    for name, dims in kept.items():
        tensor = result.get_submodule(name.rpartition(".")[0]).__getattr__(name.rpartition(".")[2]).data
        for dim, rows in dims.items():
            gone = [i for i in range(tensor.shape[dim]) if i not in set(rows)]
            tensor.index_fill_(dim, torch.tensor(gone, dtype=torch.long), float("nan"))
    return result


def literal(slim: fx.GraphModule, node: str, args: tuple[Any, ...]) -> fx.GraphModule:
    """Replace the literal arguments of a node (everything behind the first)."""
    for each in slim.graph.nodes:
        if each.name == node:
            each.args = (each.args[0], *args)
    slim.recompile()
    return slim
