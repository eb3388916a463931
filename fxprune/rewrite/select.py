"""Selects in front of batch norms, and of convolutions, that read fewer channels than arrive.

1. At a cut (provenance/cuts.py) the channels that arrive are mapped to those that the layer keeps, position by position; where an atom
   arrives several times, its k-th position in the original is its k-th in the slim program; what arrives without an atom takes what is left.
2. If that is the identity nothing is inserted; if it is a range of neighbours, a slice ``x[:, a:b]``; otherwise ``index_select`` with a
   buffer of positions. The buffer is not in the state dict: the plan knows it.
3. Selects of selects become one, where nothing else reads the first one; those that came to take everything vanish.
"""

from __future__ import annotations

import operator
from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.errors import RewriteError
from fxprune.graph.channels import ChannelGraph
from fxprune.provenance.cuts import Cut
from fxprune.provenance.factor import Ids
from fxprune.rewrite.passes import Pass

SELECT = "fxprune_select"


def cuts_of(graph: ChannelGraph) -> dict[str, tuple[Cut, bool]]:
    """The cuts of a program by the names of their nodes, and whether they select."""
    if graph.selection is None:
        return {}
    return {cut.node: (cut, cut in graph.selection.cuts) for cut in (*graph.selection.closed, *graph.selection.cuts)}


def selecting(state: Pass, cut: Cut, open_: bool, copy: fx.Node, env: dict[fx.Node, Any]) -> MutableMapping[fx.Node, Any]:
    """Insert a select before the copy of a cut layer's node, if it needs one; what that node then sees of the values before it.

    Behind a cut that does not select (``open_`` is false) channels stand as they arrive.
    """
    given = copy.args[0] if copy.args else copy.kwargs["input"]
    assert isinstance(given, fx.Node)
    x: Tensor = env[given]
    places = _positions(state, cut, x)
    if open_:
        wanted = state.arrival.order[next(axis for axis in state.by_name[cut.gamma] if axis.dim == cut.dim)]
    else:
        there = np.flatnonzero(places >= 0)
        wanted = there[np.argsort(places[there])]
    index = places[wanted]
    shape = [x.shape[0], len(index), *x.shape[2:]]
    own = cut.own[wanted].reshape((1, -1) + (1,) * (x.dim() - 2))
    result = state.tracker.new(shape, x, [own])
    if np.array_equal(index, np.arange(x.shape[1])):
        return ChainMap({given: result}, env)
    made = _node(state, cut, copy, given, index)
    copy.replace_input_with(given, made)
    return ChainMap({made: result}, env)


def _positions(state: Pass, cut: Cut, x: Tensor) -> Ids:
    """Where each position of the original stands in what arrives (clause 1); -1 for those that do not."""
    component = state.arrival.component
    there = np.flatnonzero(state.alive[cut.source])
    factors = state.tracker.value(x).factors
    arrived = factors[0].ravel() if factors else np.zeros(x.shape[1], np.int64)
    places = np.full(len(cut.source), -1, np.int64)
    if len(there) == len(arrived):
        have, want = component[arrived], component[cut.source[there]]
        told = np.isin(have, want) & (arrived > 0)  # a width of one is joined or repeated without its atom
        if ((have == want) | ~told).all():
            places[there] = np.arange(len(there))
            return places
        open_ = dict.fromkeys(there.tolist())
        rows: dict[int, list[int]] = {}
        for position in there.tolist():
            rows.setdefault(int(component[cut.source[position]]), []).append(position)
        for place in np.flatnonzero(told).tolist():
            mine = rows.get(int(have[place]))
            if not mine:
                break
            position = mine.pop(0)
            places[position] = place
            del open_[position]
        else:
            places[list(open_)] = np.flatnonzero(~told)
            return places
    raise RewriteError(
        f"node {cut.node!r} selects among {len(there)} channels, and {x.shape[1]} others arrive; please report this model.",
        node=cut.node,
        expected=len(there),
        got=x.shape[1],
    )


def _node(state: Pass, cut: Cut, copy: fx.Node, given: fx.Node, index: Ids) -> fx.Node:
    """Clause 2."""
    graph = copy.graph
    taken = {node.name for node in state.graph.program.captured.graph.nodes} | {node.name for node in graph.nodes}
    with graph.inserting_before(copy):
        if np.array_equal(index, np.arange(index[0], index[0] + len(index))):
            made = graph.call_function(operator.getitem, (given, (slice(None), slice(int(index[0]), int(index[-1]) + 1))))
        else:
            buffer = _buffer(state.root, f"_select_{cut.node}", index, state.graph.tensors[cut.gamma].device)
            where = graph.get_attr(buffer)
            where.name = _unique(f"{cut.node}_index", taken)
            made = graph.call_function(torch.index_select, (given, 1, where))
    made.name = _unique(f"{cut.node}_select", taken)
    made.meta[SELECT] = True
    return made


def _unique(name: str, taken: set[str]) -> str:
    found, number = name, 0
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def _buffer(root: nn.Module, name: str, index: Ids, device: torch.device) -> str:
    """Clause 2: positions as a buffer of the program's module."""
    free, number = name, 0
    while hasattr(root, free):
        number += 1
        free = f"{name}_{number}"
    home = torch.device("cpu") if device.type == "meta" else device
    root.register_buffer(free, torch.tensor(index, dtype=torch.int64, device=home), persistent=False)
    return free


def tidied(graph: fx.Graph, root: nn.Module, known: Mapping[str, Tensor], widths: Mapping[fx.Node, int]) -> None:
    """Clause 3, in place. ``known``: the original's tensors, for positions of an earlier round; ``widths``: channels of nodes' values."""
    home = next((tensor.device for tensor in known.values()), torch.device("cpu"))
    for node in list(graph.nodes):
        if SELECT not in node.meta:
            continue
        source = node.args[0]
        if SELECT in source.meta and len(source.users) == 1:
            inner, outer = _taken(source, root, known, widths), _taken(node, root, known, widths)
            if inner is not None and outer is not None:
                _replace(graph, root, node, source.args[0], inner[outer], home)
                graph.erase_node(source)
                source = node.args[0]
        found = _taken(node, root, known, widths)
        if found is not None and len(found) == widths.get(source) and np.array_equal(found, np.arange(len(found))):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif found is not None and node.target is operator.getitem and not isinstance(node.args[1][1], slice):
            _replace(graph, root, node, source, found, home)  # a list of numbers, patched by literals.py
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users and str(node.target).startswith("_select_"):
            graph.erase_node(node)


def _taken(node: fx.Node, root: nn.Module, known: Mapping[str, Tensor], widths: Mapping[fx.Node, int]) -> Ids | None:
    """The positions that a select takes, where they can be told."""
    source: Any = node.args[0]
    width = widths.get(source)
    if width is None:
        return None
    everything = np.arange(width)
    if node.target is operator.getitem:
        key: Any = node.args[1]
        if isinstance(key, tuple) and len(key) == 2 and key[0] == slice(None):
            return everything[list(key[1]) if isinstance(key[1], (list, tuple)) else key[1]]
        return None
    where = node.args[2] if node.target is torch.index_select and len(node.args) == 3 else None
    if isinstance(where, fx.Node) and where.op == "get_attr":
        name = str(where.target)
        numbers = known[name] if name in known else getattr(root, name, None)
        if isinstance(numbers, Tensor) and not numbers.is_meta:
            found: Ids = numbers.cpu().numpy()
            return found
    return None


def _replace(graph: fx.Graph, root: nn.Module, node: fx.Node, source: Any, index: Ids, home: torch.device) -> None:
    with graph.inserting_before(node):
        if np.array_equal(index, np.arange(index[0], index[0] + len(index))):
            node.target = operator.getitem
            node.args = (source, (slice(None), slice(int(index[0]), int(index[-1]) + 1)))
            return
        where = graph.get_attr(_buffer(root, f"_select_{node.name}", index, home))
        node.target, node.args = torch.index_select, (source, 1, where)
