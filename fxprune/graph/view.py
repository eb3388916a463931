"""What people look at: the coupling graph as networkx, and explanations in words."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from fxprune.errors import FxpruneError

if TYPE_CHECKING:
    import networkx

    from fxprune.graph.channels import ChannelGraph
    from fxprune.provenance.factor import Ids

MOST_NAMES = 12
NO_AXIS = -1


def _axis_of(graph: ChannelGraph) -> Ids:
    """Axis number per atom; -1 for atoms without a parameter."""
    owner = np.full(graph.program.recorder.atoms, NO_AXIS, np.int64)
    for number, axis in enumerate(graph.axes):
        owner[axis.start : axis.start + axis.size] = number
    return owner


def to_networkx(graph: ChannelGraph) -> networkx.MultiGraph[str]:
    """Axes as nodes (``channels``, ``pinned``: how many), couplings as edges (``node``: where in the program, ``channels``: how many).

    Edges join axes that a node couples directly; axes that share channels without meeting at one node are joined through others.
    """
    import networkx

    result: networkx.MultiGraph[str] = networkx.MultiGraph()
    component, pinned = graph.closed.component, graph.pinned
    for axis in graph.axes:
        own = component[axis.start : axis.start + axis.size]
        result.add_node(axis.label, name=axis.name, dim=axis.dim, channels=axis.size, pinned=int(pinned[own].sum()))
    for (left, right, node), count in sorted(_edges(graph).items()):
        result.add_edge(graph.axes[left].label, graph.axes[right].label, key=node, node=node, channels=count)
    return result


def _edges(graph: ChannelGraph) -> Counter[tuple[int, int, str]]:
    owner = _axis_of(graph)
    edges: Counter[tuple[int, int, str]] = Counter()
    for coupling in graph.program.recorder.couplings:
        left, right = owner[coupling.left], owner[coupling.right]
        both = (left >= 0) & (right >= 0) & (left != right)
        if both.any():
            pairs, counts = np.unique(np.stack([left[both], right[both]]), axis=1, return_counts=True)
            for a, b, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
                edges[(min(a, b), max(a, b), coupling.node)] += count
    return edges


def explain(graph: ChannelGraph, name: str) -> str:
    """With whom the channels of a module or parameter are coupled, through which nodes, and why some cannot go.

    Raises:
        FxpruneError: no parameter or module of that name.
    """
    numbers = [i for i, a in enumerate(graph.axes) if a.name == name or a.name.startswith(name + ".") or a.label == name]
    if not numbers:
        known = sorted({a.name.rpartition(".")[0] for a in graph.axes if a.name.rpartition(".")[0]})
        near = [k for k in known if name.rsplit(".", maxsplit=1)[-1] in k][:3]
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        raise FxpruneError(f"{name!r} is no module or parameter with channels in this program.{hint}", got=name)
    lines = [f"{name}:"]
    for number in numbers:
        lines += _axis_lines(graph, number)
    return "\n".join(lines)


def _axis_lines(graph: ChannelGraph, number: int) -> list[str]:
    axis = graph.axes[number]
    own = graph.closed.component[axis.start : axis.start + axis.size]
    free = int((~graph.pinned[own]).sum())
    side = "input" if graph.reading[number] else "output" if graph.tensors[axis.name].dim() > 1 else "per-channel"
    lines = [f"  {axis.label} ({side} side, {axis.size} channels): {free} can go, {axis.size - free} cannot."]
    partners = [label for label in graph.axes_of(np.unique(own).tolist()) if label != axis.label]
    if partners:
        more = f" and {len(partners) - MOST_NAMES} more" if len(partners) > MOST_NAMES else ""
        lines.append(f"    coupled with {', '.join(partners[:MOST_NAMES])}{more}")
    nodes = _through(graph, own)
    if nodes:
        more = f" and {len(nodes) - MOST_NAMES} more" if len(nodes) > MOST_NAMES else ""
        lines.append(f"    through nodes {', '.join(nodes[:MOST_NAMES])}{more}")
    for balance in graph.closed.balances:
        if np.isin(own, balance.blocks).any():
            blocks, size = balance.blocks.shape
            lines.append(f"    balance at node {balance.node!r}: {blocks} blocks of {size} keep equally many each")
    for family in graph.closed.families:
        going = [whole for whole in family.wholes if np.isin(own, whole).any() and not graph.pinned[whole].any()]
        if len(going) > 1:
            lines.append(f"    block at node {family.node!r}: {len(going)} blocks can go as a whole, all but one")
    for node, reason, count in _pins(graph, own):
        lines.append(f"    pinned at node {node!r}: {reason} ({count} channels)")
    return lines


def _through(graph: ChannelGraph, own: Ids) -> list[str]:
    mine = np.zeros(graph.closed.count, np.bool_)
    mine[own] = True
    mine[graph.closed.component[0]] = False
    found: dict[str, None] = {}
    for coupling in graph.program.recorder.couplings:
        if mine[graph.closed.component[coupling.left]].any():
            found.setdefault(coupling.node)
    return list(found)


def _pins(graph: ChannelGraph, own: Ids) -> list[tuple[str, str, int]]:
    result = []
    for pin in graph.program.recorder.pins:
        count = int(np.isin(own, graph.closed.component[pin.ids]).sum())
        if count:
            result.append((pin.node, pin.reason, count))
    rigid = [(c, node, "the only channel of a block whose number the operator fixes") for c, node in graph.closed.rigid]
    barred = [(graph.closed.component[ids], node, reason) for ids, node, reason in graph.barred]
    for components, node, reason in (*barred, *rigid):
        count = int(np.isin(own, components).sum())
        if count:
            result.append((node, reason, count))
    merged: dict[tuple[str, str], int] = {}
    for node, reason, count in result:
        merged[(node, reason)] = max(count, merged.get((node, reason), 0))
    return [(node, reason, count) for (node, reason), count in merged.items()]
