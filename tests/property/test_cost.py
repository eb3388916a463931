"""What a plan costs, computed from the provenance alone, is what the rewritten model costs: to the last unit, for any plan.

The oracle counts the slim model: elements of its parameters, ``torch.utils.flop_counter`` while it runs, bytes of what its nodes return.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.cost import Cost
from fxprune.provenance.factor import Mask
from fxprune.solve.plans import removed_channels, to_plan
from fxprune.solve.ratio import Solution
from tests.property.compiling import network, options
from tests.property.profile import share
from tests.property.strategies import Case, cases


class Bytes(fx.Interpreter):
    """Bytes of every tensor that calls return, and which of them have storages of their own."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[int, Tensor] = {}
        self.found: dict[tuple[str, int], int] = {}
        self.new: set[tuple[str, int]] = set()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        for i, x in enumerate(x for x in tree_leaves(result) if isinstance(x, Tensor)):
            if n.op.startswith("call"):
                self.found[n.name, i] = x.numel() * x.element_size()
                if x.untyped_storage()._cdata not in self.seen:
                    self.new.add((n.name, i))
            self.seen.setdefault(x.untyped_storage()._cdata, x)
        return result


def counted(slim: nn.Module, inputs: tuple[Tensor, ...], original: nn.Module) -> dict[str, int]:
    """Parameters, MACs and activation bytes of a module, without a look at how it was made.

    Whether a reshape copies may depend on widths: the results that count are those that are new in the original.
    """
    hollow = copy.deepcopy(slim).eval().to("meta")
    hollow_inputs = tree_map_only(Tensor, lambda x: x.to("meta"), inputs)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        hollow(*hollow_inputs)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    found = {"params": sum(p.numel() for p in slim.parameters()), "macs": flops // 2}
    if isinstance(hollow, fx.GraphModule):
        whole = fx.GraphModule(copy.deepcopy(original).eval().to("meta"), fxprune.capture.tracer.trace(original).graph)
        runs = [Bytes(hollow), Bytes(whole)]
        with torch.no_grad():
            for run in runs:
                run.run(*hollow_inputs)
        if runs[1].new <= runs[0].found.keys():  # a function that was lowered has other results
            found["activation_bytes"] = sum(runs[0].found[result] for result in runs[1].new)
    return found


def foreseen(graph: ChannelGraph, removed: Mask) -> dict[str, int]:
    cost = Cost(graph)
    return {kind: cost.of(kind).at(~removed) for kind in ("params", "macs", "activation_bytes")}


def random_plan(graph: ChannelGraph, seed: int) -> fxprune.Plan:
    """Any legal plan: single channels at will, cells in step by different channels each."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(graph.closed.count, np.bool_)
    stepped = np.zeros(graph.closed.count, np.bool_)
    stepped[graph.closed.owners] = True
    for cells in graph.closed.cells:
        free = min(int((~graph.pinned[cell]).sum()) * cells.steps // len(cell) for cell in cells.cells)
        most = min(cells.steps - 1, free)
        steps = int(rng.integers(0, most + 1)) if most > 0 else 0
        for cell in cells.cells:
            stepped[cell] = True
            removed[rng.permutation(cell[~graph.pinned[cell]])[: steps * (len(cell) // cells.steps)]] = True
    for group in graph.groups:
        single = group.channels[~stepped[group.channels]]
        left = max(1, -(-len(single) // 4))
        if len(single) > left:
            removed[rng.permutation(single)[: int(rng.integers(0, len(single) - left + 1))]] = True
    for floor in graph.program.recorder.floors:
        own = graph.closed.component[floor.ids]
        if (~removed[own]).sum() < floor.least:
            removed[own] = False
    for cells in graph.closed.cells:  # what a floor brought back brings its cells back
        if len({int(removed[c].sum()) * 1000 // len(c) for c in cells.cells}) > 1:
            for own in cells.cells:
                removed[own] = False
    return to_plan(graph, Solution(removed, 0.0, 0.0), "random")


@share(0.3)
@given(cases())
def test_costs_are_those_of_the_slim_model(case: Case) -> None:
    """Plans that the solver makes."""
    model, inputs = network(case)
    ratio = case.ratio
    while ratio > 0.02:
        try:
            slim = fxprune.slim(model, ratio, inputs, **options(case), absorb=False, verify=False)
        except fxprune.BudgetError:
            ratio /= 2
            continue
        graph = fxprune.analyze(model, inputs, keep=case.keep)
        plan = fxprune.plan_of(slim)
        try:
            removed = removed_channels(graph, plan)
        except fxprune.PlanMismatchError:
            return  # the graph was settled further while emitting
        assert foreseen(graph, removed) == counted(slim, inputs, model)
        return


@share(0.2)
@given(cases(), st.integers(0, 1000))
def test_costs_of_random_plans(case: Case, seed: int) -> None:
    model, inputs = network(replace(case, keep=()))
    graph = fxprune.analyze(model, inputs)
    plan = random_plan(graph, seed)
    try:
        slim = fxprune.apply(model, plan, inputs, absorb=False, verify=False)
    except fxprune.RewriteError:
        return  # what arrives in an order that no weights can mend
    assert foreseen(graph, removed_channels(graph, plan)) == counted(slim, inputs, model)


@share(0.1)
@given(cases())
def test_the_whole_model(case: Case) -> None:
    model, inputs = network(case)
    graph = fxprune.analyze(model, inputs)
    nothing = np.zeros(graph.closed.count, np.bool_)
    empty = to_plan(graph, Solution(nothing, 0.0, 0.0), "none")
    same = fxprune.apply(model, empty, inputs, absorb=False, verify=False)
    assert foreseen(graph, nothing) == counted(same, inputs, model)


def test_a_wrong_count_would_be_seen() -> None:
    model, inputs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), (torch.randn(1, 3, 8, 8),)
    graph = fxprune.analyze(model, inputs)
    plan = fxprune.plan(graph, 0.5)
    slim = fxprune.apply(model, plan, inputs, absorb=False)
    removed = removed_channels(graph, plan)
    removed[np.flatnonzero(removed)[0]] = False
    with pytest.raises(AssertionError):
        assert foreseen(graph, removed) == counted(slim, inputs, model)
