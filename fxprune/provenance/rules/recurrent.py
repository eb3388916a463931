"""Recurrent layers: LSTM, GRU and Elman networks, whole (their cells come down to products and elementwise operators).

1. A *unit* is one hidden channel of one layer in one direction. Its rows of all gates in ``weight_ih`` and ``weight_hh``, their biases,
   and its column of ``weight_hh`` live and die together: what does not exist adds nothing to the next step. With a projection, the
   column of ``weight_hh`` belongs to a *projected* channel, a row of ``weight_hr``, and the unit to a column of ``weight_hr``.
2. The input's last dimension is contracted with ``weight_ih``; a later layer reads all directions of the layer before, one after another.
3. Initial states meet the units elementwise; where they have no channels (a model input), the units stay. Without them nothing is coupled.
4. The output holds the last layer's units (or projected channels), direction by direction. The final states have a row per layer and
   direction: all rows are equally wide, so all layers and directions keep equally many units (a rigid split).
5. A projection stays narrower than the hidden state, or PyTorch would not see that there is one: more units stay than there were
   projected channels.
6. Time steps and sequences (the batch) cannot go.
7. Every step of every sequence multiplies once with each element of every weight matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.provenance.factor import Ids, Value, along, support
from fxprune.provenance.rules.contraction import contract
from fxprune.provenance.tracker import Rule, Tracker

STEPS = "time steps or sequences of a recurrent layer"
MISSING_STATE = "a recurrent layer's states have channels that cannot go"


@dataclass(frozen=True, slots=True)
class Layers:
    """What the calls of all kinds have in common. ``lead`` labels the input's dimensions but the last: t for time, n for batch."""

    gates: int
    params: Sequence[Tensor]
    biases: bool
    count: int
    directions: int
    lead: str

    def weights(self, index: int) -> Sequence[Tensor]:
        """``weight_ih, weight_hh[, bias_ih, bias_hh][, weight_hr]`` of one layer in one direction."""
        each = len(self.params) // (self.count * self.directions)
        return self.params[index * each : (index + 1) * each]

    def projection(self, index: int) -> Tensor | None:
        own = self.weights(index)
        return own[-1] if len(own) in (3, 5) else None


def run(t: Tracker, x: Tensor, states: Sequence[Tensor], batch: int | None, layers: Layers) -> tuple[Tensor, list[Tensor]]:
    """The output and the final states (hidden, and cell if there are four gates); clauses 1 to 6.

    ``batch`` is the number of sequences, None for a single one without a batch dimension.
    """
    hidden, width = _sizes(layers, x)
    value = t.value(x)
    rows: list[tuple[Ids | None, Ids | None]] = []
    for layer in range(layers.count):
        found: list[Ids | None] = []
        for direction in range(layers.directions):
            index = layer * layers.directions + direction
            _read(t, value, layers.weights(index)[0], layers.lead)
            for weight in layers.weights(index):
                _steps(t, x, weight)
            unit, out = _layer(t, layers, index, hidden)
            if layers.projection(index) is None:
                for state in states:
                    unit = out = _meet(t, state, index, out)
            elif states:
                out, unit = _meet(t, states[0], index, out), _meet(t, states[1], index, unit)
            rows.append((out, unit))
            found.append(out)
        shape = (*x.shape[:-1], layers.directions * width)
        value = Value(shape, tuple(_side_by_side(t, found, len(shape))))
    output = t.new(value.shape, x, value.factors)
    batched = () if batch is None else (batch,)
    finals = []
    for place, size in enumerate((width, hidden)[: 2 if layers.gates == 4 else 1]):
        shape = (len(rows), *batched, size)
        finals.append(t.new(shape, x, _rows(t, [row[place] for row in rows], len(shape))))
    return output, finals


def _sizes(layers: Layers, x: Tensor) -> tuple[int, int]:
    """The numbers of units and of output channels per direction; the shapes of all parameters are held against them."""
    hidden = layers.params[1].shape[0] // layers.gates
    first = layers.projection(0)
    width = hidden if first is None else first.shape[0]
    if first is not None and width >= hidden:
        raise ValueError(f"a projection to {width} of {hidden} units")
    given = x.shape[-1]
    for index in range(layers.count * layers.directions):
        own = layers.weights(index)
        wanted = given if index < layers.directions else layers.directions * width
        rows = layers.gates * hidden
        sizes = [(rows, wanted), (rows, width), *([(rows,), (rows,)] if layers.biases else [])]
        sizes += [] if first is None else [(width, hidden)]
        if [tuple(w.shape) for w in own] != sizes:
            raise ValueError(f"weights of shapes {[tuple(w.shape) for w in own]}, expected {sizes}")
    return hidden, width


def _read(t: Tracker, value: Value, weight: Tensor, lead: str) -> None:
    """Clauses 2 and 6: contract the input with ``weight_ih``."""
    for ids in contract(t, value, lead + "k", t.value(weight), "jk", lead + "j"):
        if ids.shape[-1] == 1:
            t.ledger.pin(ids, STEPS)


def _steps(t: Tracker, x: Tensor, weight: Tensor) -> None:
    """Clause 7."""
    if weight.dim() == 2:
        own = tuple(ids[None] for ids in t.value(weight).factors)
        t.ledger.product(Value((x.numel() // max(x.shape[-1], 1), *weight.shape), own))


def _layer(t: Tracker, layers: Layers, index: int, hidden: int) -> tuple[Ids | None, Ids | None]:
    """Clause 1: the units of one layer in one direction and its output channels (the units, or those of the projection)."""
    own, projection = layers.weights(index), layers.projection(index)
    shape = (layers.gates, hidden)
    gates = [
        Value(shape, tuple(_first(t, w).reshape(shape) for w in [w] if _first(t, w) is not None)) for w in _gated(layers, own)
    ]
    unit = _one(t, [t.smear(ids, (0,)) for ids in t.merge(shape, gates)])
    out, wide = unit, hidden
    if projection is not None:
        contract(t, _flat(unit, hidden), "nk", t.value(projection), "jk", "nj")
        out, wide = _one(t, [_first(t, projection)]), projection.shape[0]
        if unit is not None:
            t.ledger.floor(unit, wide + 1, "a projection stays narrower than the hidden state")
    contract(t, _flat(out, wide), "nk", t.value(own[1]), "jk", "nj")
    return unit, out


def _gated(layers: Layers, own: Sequence[Tensor]) -> Sequence[Tensor]:
    return own[: 4 if layers.biases else 2]


def _first(t: Tracker, weight: Tensor) -> Any:
    """The ids along a parameter's first dimension."""
    for ids in t.value(weight).factors:
        if support(ids) == (0,):
            return ids.ravel()
        if len(support(ids)) > 1:
            t.ledger.pin(ids, "a recurrent layer's weight whose channels vary along both dimensions")
    return None


def _one(t: Tracker, found: Sequence[Any]) -> Ids | None:
    """The one run of channels among these, flat; a single channel is pinned."""
    runs = [ids.ravel() for ids in found if ids is not None]
    for ids in runs:
        if ids.size == 1:
            t.ledger.pin(ids, "the only unit of a recurrent layer")
    return next((ids for ids in runs if ids.size > 1), None)


def _flat(ids: Ids | None, size: int) -> Value:
    return Value((1, size), () if ids is None else (ids.reshape(1, -1),))


def _meet(t: Tracker, state: Tensor, index: int, own: Ids | None) -> Ids | None:
    """Clause 3: one row of a given state, shape (layers * directions[, batch], size), and the channels it is the state of."""
    shape = tuple(state.shape)[1:]
    factors = []
    for ids in t.value(state).factors:
        row = ids[index : index + 1] if ids.shape[0] > 1 else ids
        if support(row):
            factors.append(row.reshape(row.shape[1:]))
        else:
            t.ledger.pin(row, "a row of a recurrent layer's states")
    rank = len(shape)
    mine = () if own is None else (along(own, rank - 1, rank),)
    merged = t.merge(shape, [Value(shape, mine), Value(shape, tuple(factors))])
    return None if own is None else next((ids.ravel() for ids in merged if support(ids) == (rank - 1,)), None)


def _side_by_side(t: Tracker, found: Sequence[Ids | None], rank: int) -> list[Ids]:
    """Clause 4: all directions along the last dimension."""
    return [along(np.concatenate(found), rank - 1, rank)] if _all_or_none(t, found) else []  # type: ignore[arg-type]


def _rows(t: Tracker, found: Sequence[Ids | None], rank: int) -> list[Ids]:
    """Clause 4: a row per layer and direction, equally wide."""
    if not _all_or_none(t, found):
        return []
    rows = np.stack(found)  # type: ignore[arg-type]
    if len(rows) > 1:
        t.ledger.block(rows, np.zeros(len(rows), np.int64))
    return [rows.reshape(len(rows), *(1,) * (rank - 2), -1)]


def _all_or_none(t: Tracker, found: Sequence[Ids | None]) -> bool:
    """True if all rows can lose channels; where one cannot, none can (they stay equally wide)."""
    if all(ids is not None for ids in found):
        return True
    for ids in found:
        if ids is not None:
            t.ledger.pin(ids, MISSING_STATE)
    return False


def _parse(x: Tensor, args: Sequence[Any], gates: int) -> tuple[Sequence[Tensor], int | None, Layers]:
    """States, batch size and layers from the arguments after the input; packed data come with their batch sizes before the states."""
    packed = isinstance(args[0], Tensor) and isinstance(args[1], Tensor)
    packed = packed or (gates == 4 and isinstance(args[0], Tensor))
    states, params, biases, count, _, _, bidirectional, *rest = args[1:] if packed else args
    states = list(states) if isinstance(states, (list, tuple)) else [states]
    first = bool(rest and rest[0])
    lead = "t" if packed or x.dim() == 2 else "nt" if first else "tn"
    batch = states[0].shape[1] if packed else None if x.dim() == 2 else x.shape[lead.index("n")]
    return states, batch, Layers(gates, params, biases, count, 2 if bidirectional else 1, lead)


def recurrent(gates: int) -> Rule:
    """The rule of an operator with so many gates.

    ``op(input, states, params, has_biases, layers, dropout, train, bidirectional, batch_first)``, or of packed data:
    ``op(data, batch_sizes, states, params, has_biases, layers, dropout, train, bidirectional)``.
    """

    def rule(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        named = [kwargs[a.name] for a in func._schema.arguments[len(args) :] if a.name in kwargs] if kwargs else []
        states, batch, layers = _parse(args[0], [*args[1:], *named], gates)
        output, finals = run(t, args[0], states, batch, layers)
        return (output, *finals)

    return rule


RULES: dict[str, Rule] = {"lstm": recurrent(4), "gru": recurrent(3), "rnn_tanh": recurrent(1), "rnn_relu": recurrent(1)}
# PyTorch takes these apart before any dispatch mode sees them; called by name they are caught whole (shortcuts.py, clause 3).
WHOLE: dict[Any, Any] = {
    target: getattr(torch.ops.aten, name).input
    for name in RULES
    for target in (getattr(torch._VF, name), *(getattr(getattr(torch.ops.aten, name), kind) for kind in ("input", "data")))
}
