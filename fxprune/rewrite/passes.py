"""One run of a slim program: its state, and what provenance predicts for its nodes.

1. A node's slim result has the predicted shape and holds the predicted channels; a channel taken alone is the one it was.
2. What is left of a value fills a box, or its channels arrive in an order that no weights can mend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.graph.channels import ChannelGraph
from fxprune.provenance.factor import Ids, Mask, Value, live_sizes, support
from fxprune.provenance.ledger import Axis
from fxprune.provenance.tracker import Tracker
from fxprune.rewrite import foreseen
from fxprune.rewrite.arrival import Arrival, OrderConflictError
from fxprune.rewrite.slicing import slim_factors


@dataclass(slots=True)
class Pass:
    """One run of the slim program (clause 2). ``calm``: what survives stands in the original's order everywhere."""

    graph: ChannelGraph
    alive: Mask
    arrival: Arrival
    tracker: Tracker
    root: nn.Module
    by_name: dict[str, list[Axis]]
    unbound: dict[int, tuple[str, Tensor]]
    modules: dict[str, nn.Module]
    singles: Mapping[str, set[int]]
    calm: bool = True
    shapes: dict[tuple[Any, ...], tuple[int, ...]] = field(default_factory=dict)
    alike: set[tuple[int, int]] = field(default_factory=set)
    packed: dict[int, Ids | None] = field(default_factory=dict)
    steps: dict[int, bool] = field(default_factory=dict)
    in_cells: Mask | None = None

    def in_order(self, node: fx.Node) -> bool:
        """Nothing that arrives at a node or leaves it is thinned in step: what survives stands in the order of the original."""
        if self.calm:
            return True
        if self.graph.selection is not None or not self.graph.closed.cells:
            return False
        if node.op != "call_module" and node.target not in foreseen.FUNCTIONS:
            return False
        values = [self.graph.nodes[n.name] for n in (node, *node.all_input_nodes)]
        return all(isinstance(v, Value) and not any(map(self._in_step, v.factors)) for v in values)

    def _in_step(self, ids: Ids) -> bool:
        found = self.steps.get(id(ids))
        if found is None:
            if self.in_cells is None:
                self.in_cells = np.zeros(self.graph.closed.count, np.bool_)
                for cells in self.graph.closed.cells:
                    self.in_cells[np.concatenate(cells.cells)] = True
            found = self.steps[id(ids)] = bool(self.in_cells[self.arrival.component[ids]].any())
        return found

    def bind(self, name: str, tensor: Tensor) -> None:
        """Enter a slim parameter or buffer with the original atoms that are left of it."""
        original = self.graph.program.captured.tensors[name]
        if name in self.graph.program.roots:
            axes = self.by_name.get(name, [])
            factors = slim_factors(original.shape, axes, self.arrival.order)
            for axis, ids in zip(axes, factors, strict=True):
                self.arrival.enter(axis, ids)
            self.tracker.bind(tensor, factors)
        elif original.device.type != "meta":
            self.tracker.set_constant(tensor, original.detach().cpu())


def compare(state: Pass, expected: Any, result: Any) -> str | None:
    """Shapes and channels of a slim result against what provenance predicts."""
    if isinstance(expected, Value):
        if not isinstance(result, Tensor):
            return "it is no tensor any more"
        predicted = predict(state, expected)
        if predicted is None:
            raise OrderConflictError(
                f"what is left at node {state.arrival.node!r} does not fill a box.",
                state.arrival.node,
                np.unique(np.concatenate([state.arrival.component[ids].ravel() for ids in expected.factors])),
            )
        if tuple(result.shape) != predicted:
            return f"it has shape {tuple(result.shape)}, provenance predicts {predicted}"
        return same_channels(state, expected, result)
    if type(expected) in PLAIN:
        return None
    if isinstance(expected, (tuple, list)):
        if not isinstance(result, (tuple, list)) or len(result) != len(expected):
            return f"it has another number of results than {len(expected)}"
        for old, new in zip(expected, result, strict=True):
            problem = compare(state, old, new)
            if problem is not None:
                return problem
        return None
    if isinstance(expected, dict):
        return next((p for key in expected if (p := compare(state, expected[key], result[key])) is not None), None)
    leaves = pytree.tree_leaves(expected)
    if any(isinstance(leaf, Value) for leaf in leaves):
        found = pytree.tree_leaves(result)
        return next((p for a, b in zip(leaves, found, strict=True) if (p := compare(state, a, b)) is not None), None)
    return None


PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size})
OTHERS = "it holds other channels than provenance predicts"


def same_channels(state: Pass, expected: Value, result: Tensor) -> str | None:
    """Clause 1 for one tensor. A channel that is the last along its dimension varies nowhere: the tracker knows it apart."""
    component, unproduced = state.arrival.component, state.arrival.unproduced
    got, alone = state.tracker.value(result), state.tracker.alone(result)
    factors = expected.factors
    if alone or len(factors) != len(got.factors):
        last = [int(live[0]) for ids in factors if len(live := ids[state.alive[ids]]) == 1]
        known = set(component[last].tolist()) | state.singles.get(state.arrival.node, set())
        if any(component[atom] not in known for atom in alone if atom not in unproduced):
            return OTHERS
        factors = tuple(ids for ids in factors if state.alive[ids].sum() > 1)
    if len(factors) != len(got.factors):
        return None
    for old, new in zip(factors, got.factors, strict=True):
        pair = (id(old), id(new))  # elementwise results share their factors
        if pair in state.alike:
            continue
        want, have = component[old[state.alive[old]]], component[new].ravel()
        if len(support(old)) == 1 and not np.array_equal(want, have):
            fresh = unproduced.issuperset
            if (new == 0).any() or fresh(old.ravel().tolist()) != fresh(new.ravel().tolist()):
                continue
            if not np.array_equal(np.sort(want), np.sort(have)):
                return OTHERS
        state.alike.add(pair)
    return None


def predict(state: Pass, value: Value) -> tuple[int, ...] | None:
    if not value.factors:
        return value.shape
    key = (value.shape, *(id(ids) for ids in value.factors))
    found = state.shapes.get(key)
    if found is None:
        found = live_sizes(value.shape, value.factors, state.alive, state.graph.within_blocks)
        if found is not None:
            state.shapes[key] = found
    return found


def shapes(state: Pass, expected: Any) -> Any:
    if isinstance(expected, Value):
        return predict(state, expected)
    return pytree.tree_map_only(Value, lambda v: predict(state, v), expected)
