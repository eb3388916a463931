"""Dropout of the retrained network (Han et al. 2015, section 3.2).

1. Pruning already takes capacity away, so the rate falls with the square root of the connections: D_r = D_o * sqrt(C_ir / C_io), where
   C_io = N_i N_(i-1) counts the connections of the layer before pruning and C_ir those that are left.
2. The layer of a dropout is the one whose neurons it drops: the prunable layers that reach it in the program through anything but another
   prunable layer. Where several do (a sum), their connections are added.
3. Where the program cannot be traced, or a dropout follows no layer, ``layers=`` says which it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

from fxprune.capture.tracer import trace
from fxprune.errors import CaptureError, FxpruneError, NothingToPruneError
from fxprune.sparse.layers import kind
from fxprune.sparse.masks import counts, permanent


def adjust_dropout(
    model: nn.Module,
    *,
    layers: Mapping[str, Sequence[str]] | None = None,
    rates: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Set the rate of every dropout module of ``model`` in place, by the connections that its masks leave (clause 1).

    Args:
        model: with masks, or with zeros in its weights.
        layers: per dropout, the layers it belongs to; found in the program where not given (clause 2).
        rates: per dropout, the rate D_o of the dense network's training; the present one where not given. Give it when pruning goes on:
            otherwise a rate that was adjusted is adjusted again.

    Returns:
        The new rate of every dropout.

    Raises:
        NothingToPruneError: there is no dropout module.
        FxpruneError: an unknown name, or a dropout whose layers cannot be found (clause 3).
    """
    drops = {name: module for name, module in model.named_modules() if isinstance(module, _DropoutNd)}
    if not drops:
        raise NothingToPruneError(f"{type(model).__name__} has no dropout module to adjust.")
    given, known = dict(layers or {}), counts(model)
    for name in (*given, *(rates or {})):
        if name not in drops:
            raise FxpruneError(f"there is no dropout {name!r}; there are {', '.join(drops)}.", node=name, expected=tuple(drops))
    found = given if set(given) == set(drops) else _before(model, set(drops)) | given
    result = {}
    for name, drop in drops.items():
        unknown = [layer for layer in found.get(name, ()) if layer not in known]
        if unknown or not found.get(name):
            what = f"{unknown[0]!r} is no prunable layer" if unknown else "no prunable layer comes before it"
            raise FxpruneError(f"dropout {name!r}: {what}. Say which it belongs to with layers={{{name!r}: (...,)}}.", node=name)
        kept, total = (sum(known[layer][i] for layer in found[name]) for i in (0, 1))
        before = (rates or {}).get(name, drop.p)
        result[name] = before * math.sqrt(kept / total)
    for name, rate in result.items():
        drops[name].p = rate
    return result


def _before(model: nn.Module, drops: set[str]) -> dict[str, Sequence[str]]:
    """The layers before each dropout (clause 2)."""
    bare = permanent(model)
    layers = {name for name, module in bare.named_modules() if kind(module)}
    try:
        graph = trace(bare).graph
    except CaptureError as error:
        raise FxpruneError(
            f"the program cannot be traced, so the layers of its dropouts are not known: give layers=. ({error})"
        ) from error
    found: dict[str, Sequence[str]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and str(node.target) in drops:
            found[str(node.target)] = (*found.get(str(node.target), ()), *sorted(_feeding(node, layers)))
    return {name: tuple(dict.fromkeys(before)) for name, before in found.items()}


def _feeding(node: fx.Node, layers: set[str]) -> set[str]:
    found: set[str] = set()
    seen, waiting = {node}, list(node.all_input_nodes)
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "call_module" and str(current.target) in layers:
            found.add(str(current.target))
        else:
            waiting += current.all_input_nodes
    return found
