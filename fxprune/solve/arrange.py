"""The order of channels in a slim network of the selection layout: gathers become slices where an order allows it.

The idea is that of UPSCALE (Wan et al. 2023, arXiv:2307.08771): a producer may lay its channels out as it likes, if all its readers know.

1. A *stream* is what a cut reads, if its channels can be laid out in any order: all of them are free and different, no balance, block or
   padding holds them, and every value of the program that carries one of them carries the whole stream, along dimension 1, in one order.
2. A reader of a stream takes a plain slice where its channels stand side by side. Its own channels then stand in the stream's order, so
   they must be a stream in the sense of clause 1 as well.
3. Readers are taken in the order of what their gathers would copy, the largest first. The stream is a row of boxes; inside a box the order is
   open. A reader fits if the boxes it touches are neighbours and those between the first and the last are its own entirely; the first
   and the last are then divided. A reader that does not fit gathers. A new order is taken if less is copied than in the old one.
4. All axes of a stream's channels list them in its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from torch.utils import _pytree as pytree

from fxprune.graph.channels import ChannelGraph, Selection
from fxprune.plan import Kept
from fxprune.provenance.cuts import Cut
from fxprune.provenance.factor import Ids, Mask, Value, support

Boxes = list[list[int]]


def arranged(graph: ChannelGraph, removed: Mask, kept: Kept) -> Kept:
    """What a plan keeps, in an order that makes gathers into slices (clauses 1 to 4)."""
    if graph.selection is None or not graph.selection.cuts:
        return kept
    rank = np.full(graph.closed.count, -1, np.int64)
    run = np.full(graph.closed.count, -1, np.int64)
    for number, order in enumerate(_orders(graph, graph.selection, removed)):
        rank[order] = np.arange(len(order))
        run[order] = number
    if not (rank >= 0).any():
        return kept
    found: dict[str, dict[int, tuple[int, ...]]] = {name: dict(dims) for name, dims in kept.items()}
    for axis in graph.axes:
        own = graph.closed.component[axis.start : axis.start + axis.size]
        if (run[own] >= 0).any():
            rows = np.array(found[axis.name][axis.dim], np.int64)
            for number in np.unique(run[own[rows]]).tolist():
                places = np.flatnonzero(run[own[rows]] == number)
                if number >= 0:
                    rows[places] = rows[places][np.argsort(rank[own[rows[places]]], kind="stable")]
            found[axis.name][axis.dim] = tuple(rows.tolist())
    return found


def copied(graph: ChannelGraph, removed: Mask, kept: Kept) -> int:
    """Bytes that the selects of a plan copy in one call: those in front of batch norms whose channels do not stand side by side."""
    if graph.selection is None:
        return 0
    component = graph.closed.component
    orders = {
        component[axis.start : axis.start + axis.size].tobytes(): kept[axis.name][axis.dim]
        for axis in graph.axes
        if axis.dim in kept.get(axis.name, {})
    }
    total = 0
    for cut in graph.selection.cuts:
        line = component[cut.source]
        order = [p for p in orders.get(line.tobytes(), range(len(line))) if not removed[line[p]]]
        if not _beside(_left(cut, component, removed), order):
            total += _copied(graph, cut, removed) * graph.tensors[cut.gamma].element_size()
    return total


def _orders(graph: ChannelGraph, selection: Selection, removed: Mask) -> Iterator[Ids]:
    """Living coupled channels of every stream that is laid out anew, and of the readers that take slices of it (clause 3)."""
    component = graph.closed.component
    rigid = _rigid(graph)
    lines = _lines(graph)
    streams: dict[bytes, list[Cut]] = {}
    for cut in selection.cuts:
        streams.setdefault(component[cut.source].tobytes(), []).append(cut)
    for cuts in streams.values():
        stream = component[cuts[0].source]
        if not _open(stream, rigid, lines):
            continue
        alive = [p for p in range(len(stream)) if not removed[stream[p]]]
        costs = {cut: _copied(graph, cut, removed) for cut in cuts}
        free = {cut: _open(component[cut.own], rigid, lines) for cut in cuts}
        boxes: Boxes = [alive]
        for cut in sorted(cuts, key=lambda cut: -costs[cut]):
            if free[cut]:
                boxes = _fit(boxes, _left(cut, component, removed)) or boxes
        order = [p for box in boxes for p in box]
        sliced = {cut for cut in cuts if free[cut] and _beside(_left(cut, component, removed), order)}
        before = sum(costs[cut] for cut in cuts if not _beside(_left(cut, component, removed), alive))
        if sum(costs[cut] for cut in cuts if cut not in sliced) >= before:
            continue
        yield stream[order]
        for cut in sliced:
            own = component[cut.own][order]
            yield own[~removed[own]]


def _left(cut: Cut, component: Ids, removed: Mask) -> set[int]:
    """The positions that a cut layer keeps."""
    return set(np.flatnonzero(~removed[component[cut.own]]).tolist())


def _beside(wanted: set[int], order: Sequence[int]) -> bool:
    """These positions stand side by side."""
    places = [i for i, p in enumerate(order) if p in wanted]
    return not places or places[-1] - places[0] == len(places) - 1


def _copied(graph: ChannelGraph, cut: Cut, removed: Mask) -> int:
    """How many numbers a gather in front of a cut layer would copy."""
    value = graph.nodes[cut.given]
    left = int((~removed[graph.closed.component[cut.own]]).sum())
    return left * (prod(value.shape[2:]) if isinstance(value, Value) else 1)


def _fit(boxes: Boxes, wanted: set[int]) -> Boxes | None:
    """The boxes divided so that these positions stand side by side, or None (clause 3)."""
    touched = [i for i, box in enumerate(boxes) if not wanted.isdisjoint(box)]
    if not touched:
        return boxes
    first, last = touched[0], touched[-1]
    if touched != list(range(first, last + 1)) or any(not wanted.issuperset(boxes[i]) for i in touched[1:-1]):
        return None
    new: Boxes = []
    for i, box in enumerate(boxes):
        mine, rest = [p for p in box if p in wanted], [p for p in box if p not in wanted]
        if i not in (first, last) or not rest:
            new.append(box)
        elif i == first:
            new += [rest, mine]
        else:
            new += [mine, rest]
    return new


def _rigid(graph: ChannelGraph) -> Mask:
    """Channels whose place is fixed (clause 1)."""
    component, recorder = graph.closed.component, graph.program.recorder
    rigid = graph.pinned.copy()
    for balance in graph.closed.balances:
        rigid[balance.blocks] = True
    for block in recorder.blocks:
        rigid[component[block.rows]] = rigid[component[block.owner]] = True
    for split in recorder.splits:
        rigid[component[split.ids]] = True
    rigid[component[sorted(recorder.unproduced)]] = True
    for axis in graph.axes:
        if axis.blocks > 1:
            rigid[component[axis.start : axis.start + axis.size]] = True
    return rigid


def _lines(graph: ChannelGraph) -> dict[int, bytes]:
    """Per component: the order of channels in the values that carry it, as bytes; b"" if they differ, or if a value is no plain map."""
    found: dict[int, bytes] = {}
    seen: set[tuple[int, ...]] = set()
    for value in pytree.tree_leaves(dict(graph.nodes)):
        if not isinstance(value, Value) or not value.factors:
            continue
        key = (len(value.shape), *(id(ids) for ids in value.factors))
        if key in seen:
            continue
        seen.add(key)
        plain = len(value.factors) == 1 and support(value.factors[0]) == (1,)
        for ids in value.factors:
            line = graph.closed.component[ids].ravel()
            text = line.tobytes() if plain else b""
            for channel in line.tolist():
                if found.setdefault(channel, text) != text:
                    found[channel] = b""
    return found


def _open(line: Ids, rigid: Mask, lines: dict[int, bytes]) -> bool:
    """Clause 1."""
    text = line.tobytes()
    return bool(
        len(np.unique(line)) == len(line) and not rigid[line].any() and all(lines.get(c, text) == text for c in line.tolist())
    )
