"""One run of a slim program: its state, and what provenance predicts for its nodes.

1. A node's slim result has the predicted shape and holds the predicted channels; a channel taken alone is the one it was.
2. What is left of a value fills a box, or its channels arrive in an order that no weights can mend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.graph.channels import ChannelGraph
from fxprune.provenance.factor import Ids, Mask, Value, live_sizes, support
from fxprune.provenance.ledger import Axis
from fxprune.provenance.tracker import Tracker
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
        return same_channels(state, expected, state.tracker.value(result))
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


def same_channels(state: Pass, expected: Value, got: Value) -> str | None:
    if len(expected.factors) != len(got.factors):
        return None
    component, fresh = state.arrival.component, state.arrival.unproduced.issuperset
    for old, new in zip(expected.factors, got.factors, strict=True):
        pair = (id(old), id(new))  # elementwise results share their factors
        if pair in state.alike:
            continue
        want, have = component[old[state.alive[old]]], component[new].ravel()
        if len(support(old)) == 1 and not np.array_equal(want, have):
            if (new == 0).any() or fresh(old.ravel().tolist()) != fresh(new.ravel().tolist()):
                continue
            if not np.array_equal(np.sort(want), np.sort(have)):
                return "it holds other channels than provenance predicts"
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
    return pytree.tree_map_only(Value, lambda v: predict(state, v), expected)
