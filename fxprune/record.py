"""What a slim module remembers: its plan in the original's coordinates, and how the original was captured.

1. Both survive ``deepcopy`` and pickling: as attributes, and as ``meta`` of a ``GraphModule``, whose copies keep nothing else.
2. Plans of successive rounds compose: the record is always in the coordinates of the first original.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import fx, nn

from fxprune.graph.channels import ChannelGraph
from fxprune.plan import Plan
from fxprune.provenance.factor import Mask
from fxprune.rewrite.emit import Emitted

RECORD = "fxprune"
Function = Callable[..., Any]


def ordered(graph: ChannelGraph, removed: Mask, emitted: Emitted) -> dict[str, dict[int, tuple[int, ...]]]:
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for axis, order in emitted.order.items():
        alive = ~removed[graph.closed.component[axis.start + order]]
        kept.setdefault(axis.name, {})[axis.dim] = tuple(order[alive].tolist())
    return kept


def sizes(graph: ChannelGraph) -> dict[str, dict[int, int]]:
    """The number of atoms of every axis."""
    found: dict[str, dict[int, int]] = {}
    for axis in graph.axes:
        found.setdefault(axis.name, {})[axis.dim] = axis.size
    return found


def attach(slim: nn.Module, record: Plan, entered: frozenset[Function]) -> None:
    """Keep the plan, and how the original was captured, on the slim module (both survive copies and pickles)."""
    slim.__dict__.update(_fxprune_plan=record, _fxprune_entered=entered)
    if isinstance(slim, fx.GraphModule):
        slim.meta.update({RECORD: record, "fxprune_entered": entered})


def entered_by(slim: nn.Module) -> frozenset[Function]:
    """The functions that were entered when the original of a slim module was captured."""
    kept = slim.meta.get("fxprune_entered") if isinstance(slim, fx.GraphModule) else None
    found = kept or slim.__dict__.get("_fxprune_entered")
    return found if isinstance(found, frozenset) else frozenset()


def record_of(model: nn.Module) -> Plan | None:
    kept = model.meta.get(RECORD) if isinstance(model, fx.GraphModule) else None
    found = kept or getattr(model, "__dict__", {}).get("_fxprune_plan")
    return found if isinstance(found, Plan) else None


def compose(first: Plan, second: Plan) -> Plan:
    """The plan in the first one's coordinates that does what both do, one after the other."""
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, dims in first.kept.items():
        for dim, rows in dims.items():
            later = second.kept.get(name, {}).get(dim)
            kept.setdefault(name, {})[dim] = rows if later is None else tuple(rows[i] for i in later)
    silent: dict[str, dict[int, tuple[int, ...]]] = {name: dict(dims) for name, dims in first.silent.items()}
    for name, dims in second.silent.items():
        for dim, atoms in dims.items():
            earlier = silent.setdefault(name, {}).get(dim, ())
            silent[name][dim] = (*earlier, *(first.kept[name][dim][i] for i in atoms))
    return replace(second, kept=kept, sizes=first.sizes, silent=silent, notes=(*first.notes, *second.notes))
