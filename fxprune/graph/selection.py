"""The channel graph of the selection layout: batch norms, and convolutions if asked, are cut from what they read.

1. The program is interpreted once more, with a cut in front of every batch norm (provenance/cuts.py). A batch norm, what follows from it
   up to the next contraction, and the input columns of its readers are then coupled channels of their own.
2. A cut is *exclusive* if everything in front of it is there for this batch norm alone: every channel of the source can go, is read at
   one position of this cut, and nothing else hears it. Such a cut selects nothing: both sides are coupled again.
3. A convolution that is cut, by name, selects always.
4. What a user asked to keep stays: the axes that were named, in the new classes. What was pinned for other reasons stays pinned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph, Selection, build
from fxprune.graph.closure import close
from fxprune.provenance.cuts import Cut, Cutter
from fxprune.provenance.eager import EagerProgram
from fxprune.provenance.factor import Ids
from fxprune.provenance.interpret import interpret


def selected(
    graph: ChannelGraph,
    *,
    merge: bool = True,
    gammas: frozenset[str] | None = None,
    weights: frozenset[str] = frozenset(),
    required: bool = True,
) -> ChannelGraph:
    """The graph of the selection layout for a graph of the coupled one (clauses 1 to 4).

    ``merge=False`` leaves out clause 2: for plans of networks whose exclusive cuts were others (several rounds in one).
    ``gammas``: the batch norms to cut, by their scales; all if left out. ``weights``: the convolutions to cut, by their weights.
    ``required=False``: a graph without cuts will do.

    Raises:
        BudgetError: no batch norm to select after, or no program to put selects in.
    """
    if graph.selection is not None and merge and gammas is None and not weights:
        return graph
    if isinstance(graph.program, EagerProgram) or graph.inputs is None:
        raise BudgetError(
            "layout='selection' puts selects into the captured program; this model was captured as an eager module, which is not "
            "rewritten. Use layout='coupled'.",
            expected="coupled",
            got="selection",
        )
    captured = graph.program.captured
    cutter = Cutter(captured, graph.gammas if gammas is None else gammas, weights)
    program = interpret(captured, graph.inputs, cutter)
    if required and not cutter.cuts:
        raise BudgetError(
            "layout='selection' needs batch norms to select after, and this model has none with a scale per channel. "
            "Use layout='coupled', which ranks channels without batch norms too.",
            expected="a batch norm with a scale",
            got=captured.name,
        )
    new = replace(build(program, graph.tensors, graph.gammas), notes=graph.notes, inputs=graph.inputs)
    heard = _heard(new, cutter)
    alone = [
        merge and own and cut.gamma not in weights
        for cut, own in zip(cutter.cuts, _exclusive(new, cutter.cuts, heard), strict=True)
    ]
    cuts = tuple(cut for cut, merged in zip(cutter.cuts, alone, strict=True) if not merged)
    closed = tuple(cut for cut, merged in zip(cutter.cuts, alone, strict=True) if merged)
    for cut in closed:
        program.recorder.node = cut.node
        program.recorder.couple(cut.source, cut.own)
    new = replace(new, closed=close(program.recorder), selection=Selection(cuts, closed, heard))
    return _barred(new, graph)


def _heard(graph: ChannelGraph, cutter: Cutter) -> Ids:
    """Atoms that something hears by itself, or through what is no column of a weight."""
    column = np.zeros(graph.program.recorder.atoms, np.bool_)
    for axis, reads in zip(graph.axes, graph.reading, strict=True):
        column[axis.start : axis.start + axis.size] = reads
    found = [ids for pair in cutter.heard if not (len(pair[1]) and column[pair[1]].all()) for ids in pair]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *found]))


def _exclusive(graph: ChannelGraph, cuts: Sequence[Cut], heard: Ids) -> list[bool]:
    """Clause 2, for every cut."""
    component = graph.closed.component
    readers = np.zeros(graph.closed.count, np.int64)
    for cut in cuts:
        np.add.at(readers, component[cut.source], 1)
    own = np.zeros(graph.closed.count, np.bool_)
    for axis, reads in zip(graph.axes, graph.reading, strict=True):
        if not reads:
            own[component[axis.start : axis.start + axis.size]] = True
    own &= ~graph.pinned & (readers == 1)
    own[component[heard]] = False
    for axis, reads in zip(graph.axes, graph.reading, strict=True):
        if reads:
            own[component[axis.start : axis.start + axis.size]] = False
    return [bool(own[component[cut.source]].all()) for cut in cuts]


def _barred(new: ChannelGraph, old: ChannelGraph) -> ChannelGraph:
    """Clause 4. Atoms of axes have the same numbers in both graphs."""
    last = max((axis.start + axis.size for axis in new.axes), default=0)
    for ids, node, reason in old.barred:
        named = [np.arange(axis.start, axis.start + axis.size) for axis in new.axes if axis.name == node]
        atoms = [own for own in named if np.isin(own, ids).all()] or [ids[ids < last]]
        own = np.unique(new.closed.component[np.concatenate(atoms)])
        new = new.bar(own[own != new.closed.component[0]], node, reason)
    return new
