"""What a slim module remembers: the plans that made it, in the original's coordinates, and where it comes from.

1. The record of a ``GraphModule`` lies in its ``meta``, that of an eager module is an attribute: it survives ``deepcopy`` and pickling
   (rewrite/module.py).
2. Plans of successive rounds compose: ``plan`` is in the coordinates of the first original. ``rounds`` are the plans as they were
   applied, each in the coordinates of the model before it; the last one's model is the slim module.
3. ``origin`` is that of the first original. ``original`` is its program without weights (original.py); a pickled record and an eager
   module's have it not.
4. ``evidence`` is what the verification of the last round saw; None where none was made.
5. ``absorption``: what was folded into readers, of all rounds, in the coordinates of the first original.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from fxprune.capture.inputs import Inputs
from fxprune.capture.signature import signature
from fxprune.folds import Absorption, Addition, composed
from fxprune.graph.channels import ChannelGraph
from fxprune.origin import Origin, origin
from fxprune.original import Original, original
from fxprune.plan import Plan
from fxprune.provenance.factor import Mask
from fxprune.rewrite.emit import Emitted
from fxprune.verify import Evidence

RECORD, ATTRIBUTE = "fxprune", "_fxprune_record"
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


class Later:
    """An origin that is worked out when somebody asks for it (it takes longer than much of a compile), or when it is pickled."""

    def __init__(self, make: Callable[[], Origin]) -> None:
        self._make = make
        self._made: Origin | None = None

    def __call__(self) -> Origin:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __reduce__(self) -> tuple[Any, ...]:
        return _known, (self(),)


def _known(origin: Origin) -> Origin:
    return origin


@dataclass(frozen=True, slots=True)
class Record:
    """Clauses 2 to 4, and the functions that were entered when the model before the last round was captured."""

    plan: Plan
    rounds: tuple[Plan, ...]
    source: Origin | Later
    entered: frozenset[Function] = frozenset()
    original: Original | None = None
    evidence: Evidence | None = None
    absorption: Absorption = field(default_factory=Absorption)

    @property
    def origin(self) -> Origin:
        """Clause 3."""
        return self.source() if isinstance(self.source, Later) else self.source

    def __deepcopy__(self, _memo: object) -> Record:
        return self  # immutable

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, (self.plan, self.rounds, self.source, self.entered, None, self.evidence, self.absorption)


def extended(
    model: nn.Module,
    graph: ChannelGraph,
    inputs: Inputs,
    final: Plan,
    entered: frozenset[Function],
    absorption: Absorption | None = None,
) -> Record:
    """The record of what ``final`` makes of ``model``. A plan that does not say what it added has added nothing: made again, it shall not either."""
    final = replace(final, added=()) if final.added is None else final
    before = record_of(model)
    own = Absorption() if absorption is None else absorption
    if before is None:
        captured = replace(graph.program.captured, root=graph.program.hollow)
        described = signature(inputs, graph.program.captured.root)
        source = Later(lambda: origin(captured, described, entered))
        return Record(final, (final,), source, entered, original(graph, described), absorption=own)
    whole = composed(before.absorption, own, before.plan.kept)
    return Record(compose(before.plan, final), (*before.rounds, final), before.source, entered, before.original, absorption=whole)


def attach(slim: nn.Module, record: Record) -> None:
    """Keep the record on the slim module (clause 1)."""
    if isinstance(slim, fx.GraphModule):
        slim.meta[RECORD] = record
    else:
        slim.__dict__[ATTRIBUTE] = record


def entered_by(slim: nn.Module) -> frozenset[Function]:
    """The functions that were entered when the original of a slim module was captured."""
    record = record_of(slim)
    return frozenset() if record is None else record.entered


def record_of(model: nn.Module) -> Record | None:
    found = model.meta.get(RECORD) if isinstance(model, fx.GraphModule) else getattr(model, "__dict__", {}).get(ATTRIBUTE)
    return found if isinstance(found, Record) else None


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
    added = second.added if first.added is None else (*_narrowed(first.added, second), *(second.added or ()))
    notes = (*first.notes, *second.notes)
    layout = "selection" if "selection" in (first.layout, second.layout) else second.layout
    return replace(second, kept=kept, sizes=first.sizes, silent=silent, notes=notes, added=added, layout=layout)


def _narrowed(added: tuple[Addition, ...], second: Plan) -> tuple[Addition, ...]:
    """Additions of a first round, with the shapes that a second one leaves them."""
    found = []
    for addition in added:
        kept = second.kept.get(addition.name, {})
        shape = tuple(len(kept[d]) if d in kept else size for d, size in enumerate(addition.shape))
        found.append(replace(addition, shape=shape))
    return tuple(found)
