"""From a budget to limits: amounts become bounds, kinds become polynomials or tables.

Bounds on what is counted are whole numbers: a share's is rounded down, but not where the share is that of a whole number and the product a hair less.
"""

from __future__ import annotations

import math

import numpy as np

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.cost import Cost
from fxprune.solve.budget import Budget
from fxprune.solve.cost_table import CostEntry, CostTable
from fxprune.solve.landscape import Limit, Tabled

HAIR = 1e-12  # relative, of floating-point numbers


def limits(graph: ChannelGraph, cost: Cost, budget: Budget) -> tuple[Limit, ...]:
    """Every bound of a budget for one graph.

    Raises:
        BudgetError: a glob that matches nothing, a latency without a table, a table of another model.
    """
    alive = np.ones(graph.closed.count, np.bool_)
    found = []
    for (kind, glob), amount in budget.amounts().items():
        if kind == "latency":
            if budget.table is None:
                raise BudgetError(
                    "a latency budget needs measurements of this model on this machine: Budget(latency=..., table=...).", got=kind
                )
            measure = tabled(graph, cost, budget.table)
            values = (cost.forms.matrix() @ alive.astype(int)).astype(float)
            original = measure.of_forms(values)
            found.append(Limit(kind, glob, measure, amount.of(original), original))
            continue
        polynomial = cost.of(kind, glob)
        original = float(polynomial.at(alive))
        if not polynomial.terms:
            names = ", ".join(repr(name) for name, _ in cost.parts(kind)[:3])
            raise BudgetError(
                f"bounds: {glob!r} matches nothing that has {kind}. Globs match modules, parameters or nodes, such as {names}.",
                got=glob,
            )
        found.append(Limit(kind, glob, polynomial, _whole(amount.of(original)), original))
    return tuple(found)


def _whole(bound: float) -> float:
    """A bound on a count."""
    return float(math.floor(bound * (1 + HAIR))) or bound


def tabled(graph: ChannelGraph, cost: Cost, table: CostTable) -> Tabled:
    """A measured table over the forms of a graph.

    Raises:
        BudgetError: an entry about an axis that the graph does not have, or of another size.
    """
    axes = {(axis.name, axis.dim): axis for axis in graph.axes}
    entries: list[tuple[CostEntry, tuple[int, ...]]] = []
    for entry in table.entries:
        own = []
        for (name, dim), grid in zip(entry.axes, entry.widths, strict=True):
            axis = axes.get((name, dim))
            if axis is None or axis.size != grid[-1]:
                size = "no such axis" if axis is None else f"{axis.size} channels"
                raise BudgetError(
                    f"the cost table does not belong to this model: entry {entry.name!r} is about {name!r}, dimension {dim}, with {grid[-1]} "
                    f"channels; the model has {size}. Measure this model.",
                    node=entry.name,
                    expected=grid[-1],
                    got=size,
                )
            own.append(cost.forms.of(graph.closed.component[axis.start : axis.start + axis.size]))
        entries.append((entry, tuple(own)))
    return Tabled(float(table.constant), tuple(entries), getattr(table, "factor", None))
