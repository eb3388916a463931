"""From a solution in coupled channels to a ``Plan`` in atoms, and back."""

from __future__ import annotations

import numpy as np

from fxprune.errors import PlanMismatchError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.selection import selected
from fxprune.plan import Plan
from fxprune.provenance.factor import Ids, Mask
from fxprune.solve.arrange import arranged
from fxprune.solve.ratio import Solution


def to_plan(graph: ChannelGraph, solution: Solution, score: str, layout: str = "coupled") -> Plan:
    """The surviving atoms of every axis."""
    listed: dict[str, dict[int, tuple[int, ...]]] = {}
    sizes: dict[str, dict[int, int]] = {}
    same: dict[bytes, tuple[int, ...]] = {}  # axes that keep the same positions share one tuple
    for axis in graph.axes:
        gone = solution.removed[graph.closed.component[axis.start : axis.start + axis.size]]
        key = gone.tobytes()
        rows = same.get(key)
        if rows is None:
            rows = same[key] = tuple(np.flatnonzero(~gone).tolist())
        listed.setdefault(axis.name, {})[axis.dim] = rows
        sizes.setdefault(axis.name, {})[axis.dim] = axis.size
    notes = (*graph.notes, *solution.notes)
    silent, kept = _silent(graph, solution.silent), arranged(graph, solution.removed, listed)
    return Plan(kept, sizes, solution.asked, solution.achieved, score, layout, notes, silent, figures=solution.figures)


def _silent(graph: ChannelGraph, channels: tuple[int, ...]) -> dict[str, dict[int, tuple[int, ...]]]:
    found: dict[str, dict[int, tuple[int, ...]]] = {}
    if channels:
        for axis, reads in zip(graph.axes, graph.reading, strict=True):
            own = graph.closed.component[axis.start : axis.start + axis.size]
            atoms = np.flatnonzero(np.isin(own, channels))
            if reads and len(atoms):
                found.setdefault(axis.name, {})[axis.dim] = tuple(atoms.tolist())
    return found


def removed_by(graph: ChannelGraph, plan: Plan, *, given: bool = False) -> tuple[ChannelGraph, Mask]:
    """What a plan removes from a graph, and that graph.

    A given plan of the selection layout may need its exclusive cuts open, and convolutions cut that read less than arrives.

    Raises:
        PlanMismatchError: as ``removed_channels``.
    """
    try:
        return graph, removed_channels(graph, plan)
    except PlanMismatchError:
        if not given or graph.selection is None:
            raise
        opened = selected(graph, merge=False, required=False)
        weights = _narrower(opened, plan)
        if weights:
            opened = selected(graph, merge=False, weights=weights)
        return opened, removed_channels(opened, plan)


def _narrower(graph: ChannelGraph, plan: Plan) -> frozenset[str]:
    """Weights of convolutions whose columns a plan removes while what they are coupled with stays, or the other way round."""
    component = graph.closed.component
    seen = np.zeros((2, graph.closed.count), np.bool_)
    for axis in graph.axes:
        live = np.zeros(axis.size, np.bool_)
        rows = plan.kept.get(axis.name, {}).get(axis.dim, range(axis.size))
        live[[row for row in rows if row < axis.size]] = True
        own = component[axis.start : axis.start + axis.size]
        seen[0, own[~live]] = seen[1, own[live]] = True
    torn: Mask = seen[0] & seen[1]
    return frozenset(
        axis.name
        for axis, reads in zip(graph.axes, graph.reading, strict=True)
        if reads
        and axis.dim == 1
        and graph.tensors[axis.name].dim() > 2
        and torn[component[axis.start : axis.start + axis.size]].any()
    )


def removed_channels(graph: ChannelGraph, plan: Plan) -> Mask:
    """The coupled channels that a plan removes from this graph.

    Raises:
        PlanMismatchError: unknown names, other sizes, or a plan that tears coupled channels apart or removes pinned ones.
    """
    axes = {(a.name, a.dim): a for a in graph.axes}
    component = graph.closed.component
    gone = np.zeros(graph.closed.count, np.bool_)
    here = np.zeros(graph.closed.count, np.bool_)
    same: dict[int, Ids] = {}
    live = np.zeros(sum(axis.size for axis in graph.axes), np.bool_)
    atoms = np.concatenate([np.zeros(0, np.int64), *(np.arange(a.start, a.start + a.size) for a in graph.axes)])
    places = dict(zip(axes, np.cumsum([0, *(axis.size for axis in graph.axes)]).tolist(), strict=False))
    for name, dims in plan.kept.items():
        for dim, rows in dims.items():
            axis = axes.pop((name, dim), None)
            if axis is None or axis.size != plan.sizes[name][dim]:
                found = "no such parameter dimension" if axis is None else f"{axis.size} channels"
                raise PlanMismatchError(
                    f"the plan does not belong to this model: it has {plan.sizes[name][dim]} channels for {name!r}, dimension {dim}; "
                    f"the model has {found}.",
                    node=name,
                    expected=plan.sizes[name][dim],
                    got=found,
                )
            index = same.get(id(rows))
            if index is None:
                index = same[id(rows)] = np.array(rows, np.int64)
            first = places[name, dim]
            live[first : first + axis.size][index] = True
    for axis in axes.values():  # what the plan does not name stays
        first = places[axis.name, axis.dim]
        live[first : first + axis.size] = True
    gone[component[atoms[~live]]] = True
    here[component[atoms[live]]] = True
    for block in graph.program.recorder.blocks:  # the owner of a block lives as long as something of the block
        dead = gone[component[block.rows]].all(axis=1) & (block.owner > 0)
        gone[component[block.owner[dead]]] = True
        here[component[block.owner[~dead]]] = True
    torn = np.flatnonzero(gone & here)
    if len(torn):
        label = ", ".join(graph.axes_of(torn[:1].tolist())[:3])
        raise PlanMismatchError(
            f"the plan removes a channel in one place and keeps it in another, though they are coupled: {label}. "
            "It was made for another model or with other constraints.",
            node=label,
            got=label,
        )
    for cut in graph.selection.cuts if graph.selection is not None else ():
        lost = component[cut.own[gone[component[cut.source]] & ~gone[component[cut.own]]]]
        if len(lost):
            label = ", ".join(graph.axes_of(lost[:1].tolist())[:3])
            raise PlanMismatchError(
                f"the plan removes a channel that a layer behind a select keeps: {label}. It was made for another model.",
                node=cut.node,
                got=label,
            )
    pinned = np.flatnonzero(gone & graph.pinned)
    if len(pinned):
        label = ", ".join(graph.axes_of(pinned[:1].tolist())[:3])
        raise PlanMismatchError(
            f"the plan removes a channel that cannot go: {label}. See graph.explain().", node=label, got=label
        )
    return gone
