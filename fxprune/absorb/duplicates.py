"""Channels that repeat another one up to a factor, merged into it.

1. Two channels of a group are *multiples*, ``x_i = s * x_j`` whatever the inputs are, if one contraction makes them, its rows (and biases, with the
   batch norm behind it taken in) are multiples by s, and every operator on the way to the readers passes a factor on: movement, averages
   and scaling any one, relu and its like and maxima a positive one. Other pointwise operators pass on none: there the rows have to be equal.
2. A reader that weighs ``x_i`` by w_i and ``x_j`` by w_j may weigh ``x_j`` by ``w_j + s * w_i`` and ``x_i`` by 0. Then nobody hears ``x_i``, and
   dead-channel elimination takes it (dead.py).
3. A channel with several rows, several producers, a grouped reader, or a reader whose weight something else uses too, is left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.absorb.operators import CONTRACTION, IDENTITY, MOVEMENT, POINTWISE, POOLING, operation
from fxprune.absorb.places import Places
from fxprune.graph.channels import ChannelGraph, ChannelGroup, Member
from fxprune.precision import double
from fxprune.provenance.factor import Mask, Value

ANY, POSITIVE, EQUAL, NONE = 3, 2, 1, 0  # the factors that an operator passes on, clause 1
SCALING = frozenset("mul multiply div truediv true_divide divide neg negative".split())
POSITIVE_POINTWISE = frozenset("relu leaky_relu prelu abs absolute".split())
ROUNDINGS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """The contraction that makes a group's channels, with the batch norm behind it, if there is one."""

    rows: Member
    node: fx.Node
    module: nn.Module
    norm: nn.modules.batchnorm._BatchNorm | None


def merged(model: nn.Module, graph: ChannelGraph) -> tuple[nn.Module, int]:
    """Clauses 1 to 3: a copy of the model in which multiples are unheard, and how many they are; the model itself if there are none."""
    places = Places(graph.program.captured, ())
    changes: list[tuple[ChannelGroup, int, int, float]] = []
    for group in graph.groups:
        found = _made(graph, group)
        if found is None or not _readable(group, places):
            continue
        passed = _passed(graph, group, found)
        if passed > NONE:
            eps = float(torch.finfo(group.tensors[found.rows.name].dtype).eps)
            changes += [(group, i, j, s) for i, j, s in _multiples(_rows(group, found), passed, ROUNDINGS * eps)]
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    changes = [c for c in changes if all(m.name in names for m in c[0].members if m.reads)]
    if not changes:
        return model, 0
    changed = copy.deepcopy(model)
    tensors = dict(changed.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for group, i, j, factor in changes:
            for member in (m for m in group.members if m.reads):
                _merge(tensors[member.name].movedim(member.dim, 0), member, i, j, factor)
    return changed, len(changes)


def _merge(columns: Tensor, member: Member, i: int, j: int, factor: float) -> None:
    """Clause 2, for one weight with its input side first."""
    gone, stays = (torch.from_numpy(np.sort(member.atom[member.channel == c])) for c in (i, j))
    columns[stays] += (factor * double(columns[gone])).to(columns)
    columns[gone] = 0


def _made(graph: ChannelGraph, group: ChannelGroup) -> Made | None:
    """What makes a group's channels, if it is one module with at most one batch norm right behind it."""
    makers = [m for m in group.members if not m.reads]
    weights = [m for m in makers if group.tensors[m.name].dim() > 1]
    if len(weights) != 1 or weights[0].blocks > 1 or len(weights[0].atom) != len(group):
        return None
    captured = graph.program.captured
    modules = dict(captured.modules)
    name = weights[0].name.rpartition(".")[0]
    module = modules.get(name)
    calls = [n for n in captured.graph.nodes if n.op == "call_module" and captured.root.get_submodule(str(n.target)) is module]
    if module is None or len(calls) != 1 or operation(calls[0], module).name not in CONTRACTION:
        return None
    if module._parameters.get("weight") is not group.tensors[weights[0].name]:
        return None
    node = calls[0]
    others = {m.name for m in makers} - {weights[0].name, f"{name}.bias" if name else "bias"}
    if not others:
        return Made(weights[0], node, module, None)
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is None or user.op != "call_module":
        return None
    norm: Any = captured.root.get_submodule(str(user.target))
    first = next(n for n, m in captured.modules if m is norm)
    own = {f"{first}.{key}" if first else key for key in ("weight", "bias", "running_mean", "running_var")}
    plain = operation(user, norm).name == "batch_norm" and isinstance(norm.running_mean, Tensor)
    once = sum(n.op == "call_module" and n.target == user.target for n in captured.graph.nodes) == 1
    return Made(weights[0], node, module, norm) if plain and once and others <= own else None


def _readable(group: ChannelGroup, places: Places) -> bool:
    """Clause 3: every reader is a contraction whose weight nothing else uses, with equally many columns for every channel."""
    readers = [m for m in group.members if m.reads]
    weights = {
        f"{name}.weight" if name else "weight"
        for name, module in places.captured.modules
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and "weight" in module._parameters
    }
    for member in readers:
        counts = np.bincount(member.channel, minlength=len(group))
        if member.blocks > 1 or member.name not in weights or not places.alone(member.name) or (counts != counts[0]).any():
            return False
        if any(
            isinstance(m, nn.modules.conv._ConvNd) and m.groups > 1 and m.weight is group.tensors[member.name]
            for _, m in places.captured.modules
        ):
            return False
    return bool(readers)


def _passed(graph: ChannelGraph, group: ChannelGroup, made: Made) -> int:
    """Clause 1: the factors that the operators on the way pass on."""
    captured = graph.program.captured
    inside = np.zeros(graph.closed.count, np.bool_)
    inside[group.channels] = True
    carries = {n.name for n in captured.graph.nodes if _carries(graph, n, inside)}
    passed = ANY
    for node in captured.graph.nodes:
        sources = [n for n in node.all_input_nodes if n.name in carries and n.op != "get_attr"]
        if not sources or node.op == "output":
            continue
        module = captured.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        what = operation(node, module)
        if module is not None and module is made.norm:
            continue
        if what.name in CONTRACTION:
            passed = passed if node.name not in carries or node is made.node else NONE
        else:
            passed = min(passed, _factors(node, what.name, sources, inplace=what.inplace))
        if passed == NONE:
            return NONE
    return passed


def _factors(node: fx.Node, name: str, sources: Sequence[fx.Node], *, inplace: bool) -> int:
    if name in ("getattr", "size", "dim"):
        return ANY
    if inplace and name not in POINTWISE:
        return NONE
    if name in IDENTITY or name in ("mean", "sum"):
        return ANY
    if name in MOVEMENT:
        return ANY if name not in ("pad", "constant_pad_nd") else EQUAL
    if name in POOLING:
        return POSITIVE if "max" in name else ANY
    if name in SCALING and len(sources) == 1 and node.args[:1] == (sources[0],) and node.args[1:2] != (sources[0],):
        return ANY
    if name in POSITIVE_POINTWISE:
        return POSITIVE
    return EQUAL if name in POINTWISE else NONE


def _carries(graph: ChannelGraph, node: fx.Node, inside: Mask) -> bool:
    values = torch.utils._pytree.tree_leaves(graph.nodes.get(node.name))
    factors = [ids for value in values if isinstance(value, Value) for ids in value.factors]
    return any(inside[graph.closed.component[ids]].any() for ids in factors)


def _rows(group: ChannelGroup, made: Made) -> Tensor:
    """One vector per channel: its row of the weight and its shift, with the batch norm taken in; float64."""
    order = torch.from_numpy(made.rows.atom[np.argsort(made.rows.channel, kind="stable")])
    weight = group.tensors[made.rows.name].detach().movedim(made.rows.dim, 0).flatten(1).cpu().to(torch.float64)[order]
    bias = made.module._parameters.get("bias")
    shift = torch.zeros(len(order), dtype=torch.float64, device="cpu") if bias is None else _vector(bias)[order]
    if made.norm is not None:
        norm: Any = made.norm
        scale = (_vector(norm.running_var) + norm.eps).rsqrt()
        scale = (scale if norm.weight is None else scale * _vector(norm.weight))[order]
        beta = torch.zeros_like(scale) if norm.bias is None else _vector(norm.bias)[order]
        shift = (shift - _vector(norm.running_mean)[order]) * scale + beta
        weight = weight * scale[:, None]
    return torch.cat([weight, shift[:, None]], 1)


def _vector(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().to(torch.float64)


def _multiples(rows: Tensor, passed: int, tolerance: float) -> list[tuple[int, int, float]]:
    """Pairs (i, j, s) with ``rows[i] = s * rows[j]``; every j stays."""
    norms = rows.norm(dim=1)
    alive = (norms > 0).nonzero().flatten().tolist()
    if len(alive) < 2:
        return []
    units = rows / norms.clamp(min=1e-300)[:, None] if passed > EQUAL else rows
    generator = torch.Generator().manual_seed(0)
    probe = units @ torch.randn(rows.shape[1], generator=generator, dtype=torch.float64, device="cpu")
    probe = probe.abs() if passed == ANY else probe
    order = sorted(alive, key=lambda i: float(probe[i]))
    near = 1e-5 * float(probe.abs().max())
    pairs: list[tuple[int, int, float]] = []
    start = 0
    for end in range(1, len(order) + 1):
        if end < len(order) and float(probe[order[end]] - probe[order[end - 1]]) <= near:
            continue
        pairs += _among(rows, norms, sorted(order[start:end], key=lambda i: (-float(norms[i]), i)), passed, tolerance)
        start = end
    return pairs


def _among(rows: Tensor, norms: Tensor, close: list[int], passed: int, tolerance: float) -> list[tuple[int, int, float]]:
    """The multiples among channels that lie close together, the largest first."""
    pairs: list[tuple[int, int, float]] = []
    firsts: list[int] = []
    for i in close:
        for j in firsts:
            factor = 1.0 if passed == EQUAL else float(rows[i] @ rows[j] / norms[j].square())
            fits = float((rows[i] - factor * rows[j]).norm()) <= tolerance * float(norms[i])
            if fits and (passed == ANY or factor > 0):
                pairs.append((i, j, factor))
                break
        else:
            firsts.append(i)
    return pairs
