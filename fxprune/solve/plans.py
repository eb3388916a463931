"""From a solution in coupled channels to a ``Plan`` in atoms, and back."""

from __future__ import annotations

import numpy as np

from fxprune.errors import PlanMismatchError
from fxprune.graph.channels import ChannelGraph
from fxprune.plan import Plan
from fxprune.provenance.factor import Mask
from fxprune.solve.ratio import Solution


def to_plan(graph: ChannelGraph, solution: Solution, score: str, layout: str = "coupled") -> Plan:
    """The surviving atoms of every axis."""
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    sizes: dict[str, dict[int, int]] = {}
    for axis in graph.axes:
        own = graph.closed.component[axis.start : axis.start + axis.size]
        alive = np.flatnonzero(~solution.removed[own])
        kept.setdefault(axis.name, {})[axis.dim] = tuple(alive.tolist())
        sizes.setdefault(axis.name, {})[axis.dim] = axis.size
    notes = (*graph.notes, *solution.notes)
    return Plan(kept, sizes, solution.asked, solution.achieved, score, layout, notes, _silent(graph, solution.silent))


def _silent(graph: ChannelGraph, channels: tuple[int, ...]) -> dict[str, dict[int, tuple[int, ...]]]:
    found: dict[str, dict[int, tuple[int, ...]]] = {}
    if channels:
        for axis, reads in zip(graph.axes, graph.reading, strict=True):
            own = graph.closed.component[axis.start : axis.start + axis.size]
            atoms = np.flatnonzero(np.isin(own, channels))
            if reads and len(atoms):
                found.setdefault(axis.name, {})[axis.dim] = tuple(atoms.tolist())
    return found


def removed_channels(graph: ChannelGraph, plan: Plan) -> Mask:
    """The coupled channels that a plan removes from this graph.

    Raises:
        PlanMismatchError: unknown names, other sizes, or a plan that tears coupled channels apart or removes pinned ones.
    """
    axes = {(a.name, a.dim): a for a in graph.axes}
    gone = np.zeros(graph.closed.count, np.int64)
    atoms = np.zeros(graph.closed.count, np.int64)
    for axis in graph.axes:
        np.add.at(atoms, graph.closed.component[axis.start : axis.start + axis.size], 1)
    for name, dims in plan.kept.items():
        for dim, rows in dims.items():
            axis = axes.get((name, dim))
            if axis is None or axis.size != plan.sizes[name][dim]:
                found = "no such parameter dimension" if axis is None else f"{axis.size} channels"
                raise PlanMismatchError(
                    f"the plan does not belong to this model: it has {plan.sizes[name][dim]} channels for {name!r}, dimension {dim}; "
                    f"the model has {found}.",
                    node=name,
                    expected=plan.sizes[name][dim],
                    got=found,
                )
            dead = np.ones(axis.size, np.bool_)
            dead[list(rows)] = False
            np.add.at(gone, graph.closed.component[axis.start : axis.start + axis.size][dead], 1)
    torn = np.flatnonzero((gone > 0) & (gone < atoms))
    if len(torn):
        label = ", ".join(graph.axes_of(torn[:1].tolist())[:3])
        raise PlanMismatchError(
            f"the plan removes a channel in one place and keeps it in another, though they are coupled: {label}. "
            "It was made for another model or with other constraints.",
            node=label,
        )
    removed = gone > 0
    pinned = np.flatnonzero(removed & graph.pinned)
    if len(pinned):
        label = ", ".join(graph.axes_of(pinned[:1].tolist())[:3])
        raise PlanMismatchError(f"the plan removes a channel that cannot go: {label}. See graph.explain().", node=label)
    return removed
