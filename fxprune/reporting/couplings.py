"""The coupling graph as people look at it: layers, not atoms.

1. A *layer* is a module or parameter that owns axes: ``layer1.0.conv1`` for its weight and bias. Layers stand in the order of the program.
2. Two layers are *coupled* if an atom of one and an atom of the other are in one coupled channel. Of a clique of n layers that share channels, the
   couplings that the program's nodes write down are shown (they connect it), with the nodes; ``Layer.groups`` tells the clique: layers
   with a group in common share channels.
3. Linear in the couplings and in the atoms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fxprune.graph.channels import ChannelGraph
from fxprune.provenance.factor import Ids

MOST_NODES = 6
STEPS = 120


@dataclass(frozen=True, slots=True)
class Pin:
    """Why channels of a layer cannot go: the node, the reason, how many of the layer's channels."""

    node: str
    reason: str
    channels: int


@dataclass(frozen=True, slots=True)
class CoupledLayer:
    """A layer (clause 1).

    Attributes:
        name: of the module, or of a parameter that a module does not call for itself.
        width: channels on the output side; 0 where it has none.
        free: how many of them can go.
        reads: channels on the input side.
        reads_free: how many of those can go.
        groups: numbers of the groups with channels of which it has atoms.
        pins: why the rest stays.
    """

    name: str
    width: int
    free: int
    reads: int
    reads_free: int
    groups: tuple[int, ...]
    pins: tuple[Pin, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """Two layers (by number) that a node couples, and the nodes that do (clause 2)."""

    left: int
    right: int
    nodes: tuple[str, ...]
    channels: int


@dataclass(frozen=True, slots=True)
class Couplings:
    """Layers and links; ``groups`` are the names of the groups."""

    layers: tuple[CoupledLayer, ...]
    links: tuple[Link, ...]
    groups: tuple[str, ...]


def couplings(graph: ChannelGraph) -> Couplings:
    """The layers of a model and what couples them."""
    names = [axis.name.rpartition(".")[0] or axis.name for axis in graph.axes]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    owner = np.full(graph.program.recorder.atoms, -1, np.int64)
    for axis, name in zip(graph.axes, names, strict=True):
        owner[axis.start : axis.start + axis.size] = number[name]
    group_of = np.full(graph.closed.count, -1, np.int64)
    for index, group in enumerate(graph.groups):
        group_of[group.channels] = index
    own: list[list[int]] = [[] for _ in number]
    for index, name in enumerate(names):
        own[number[name]].append(index)
    pins = _pins(graph)
    layers = tuple(_layer(graph, name, own[i], group_of, pins) for name, i in number.items())
    return Couplings(layers, _links(graph, owner), tuple(group.name for group in graph.groups))


def places(found: Couplings) -> tuple[tuple[float, float], ...]:
    """Where the layers stand when couplings pull them together: a seeded spring layout that begins on a circle in program order."""
    import networkx

    graph: networkx.Graph[int] = networkx.Graph()
    graph.add_nodes_from(range(len(found.layers)))
    graph.add_edges_from((link.left, link.right) for link in found.links)
    parts = sorted(networkx.connected_components(graph), key=lambda part: (-len(part), min(part)))
    result: dict[int, tuple[float, float]] = {}
    left = 0.0
    for (
        part
    ) in parts:  # a part by itself would be driven away by the others: parts stand side by side, each as large as it has layers
        inner = graph.subgraph(sorted(part))
        size = len(part) ** 0.5
        start = networkx.circular_layout(inner)
        spread = networkx.spring_layout(inner, pos=start, iterations=STEPS, seed=0, k=1.5 / size) if len(part) > 2 else start
        for layer, (x, y) in spread.items():
            result[layer] = (round(float(left + size * (1 + x)), 2), round(float(size * y), 2))
        left += 2.4 * size
    return tuple(result[i] for i in range(len(found.layers)))


def _layer(graph: ChannelGraph, name: str, numbers: list[int], group_of: Ids, pins: list[tuple[str, str, Ids]]) -> CoupledLayer:
    component = graph.closed.component
    sides: dict[bool, tuple[int, int]] = {}
    met = []
    for index in numbers:
        axis = graph.axes[index]
        atoms = component[axis.start : axis.start + axis.size]
        met.append(atoms)
        sides.setdefault(bool(graph.reading[index]), (axis.size, int((~graph.pinned[atoms]).sum())))
    mine = np.unique(np.concatenate(met))
    groups = np.unique(group_of[mine])
    (width, free), (reads, reads_free) = (sides.get(side, (0, 0)) for side in (False, True))
    why = []
    for node, reason, components in pins:
        count = int(np.isin(mine, components, assume_unique=True).sum())
        if count:
            why.append(Pin(node, reason, count))
    return CoupledLayer(name, width, free, reads, reads_free, tuple(groups[groups >= 0].tolist()), tuple(why))


def _pins(graph: ChannelGraph) -> list[tuple[str, str, Ids]]:
    """Node, reason and coupled channels of every pin; one entry per node and reason."""
    component = graph.closed.component
    found: dict[tuple[str, str], list[Ids]] = {}
    for pin in graph.program.recorder.pins:
        found.setdefault((pin.node, pin.reason), []).append(component[pin.ids].ravel())
    for ids, node, reason in graph.barred:
        found.setdefault((node, reason), []).append(component[ids].ravel())
    for components, node, reason in graph.closed.rigid:
        found.setdefault((node, reason), []).append(np.asarray(components).ravel())
    return [(node, reason, np.unique(np.concatenate(ids))) for (node, reason), ids in found.items()]


def _links(graph: ChannelGraph, owner: Ids) -> tuple[Link, ...]:
    events = graph.program.recorder.couplings
    if not events:
        return ()
    left, right = (
        np.concatenate([side.ravel() for side in sides]) for sides in zip(*((e.left, e.right) for e in events), strict=True)
    )
    event = np.repeat(np.arange(len(events)), [e.left.size for e in events])
    a, b = owner[left], owner[right]
    joined = (a >= 0) & (b >= 0) & (a != b)
    pairs = np.stack([np.minimum(a, b)[joined], np.maximum(a, b)[joined], event[joined]])
    unique, counts = np.unique(pairs, axis=1, return_counts=True)
    found: dict[tuple[int, int], tuple[dict[str, None], int]] = {}
    for x, y, e, count in zip(*unique.tolist(), counts.tolist(), strict=True):
        nodes, most = found.get((x, y), ({}, 0))
        found[(x, y)] = ({**nodes, events[e].node: None}, max(most, count))
    return tuple(Link(x, y, tuple(nodes)[:MOST_NODES], most) for (x, y), (nodes, most) in found.items())
