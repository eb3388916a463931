"""Property 2: an empty plan returns an equal program, and plans compose."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from hypothesis import given

import fxprune
from fxprune.errors import BudgetError
from fxprune.plan import Plan
from tests.property.compiling import TOLERANCE, compiled, network, options, run
from tests.property.profile import share
from tests.property.program import Program
from tests.property.strategies import Case, cases, programs
from tests.reference.compare import relative_error
from tests.reference.zeroed import zeroed


@share(0.8)
@given(programs(setitem=True))
def test_an_empty_plan_returns_an_equal_program(program: Program) -> None:
    model, inputs = network(Case(program))
    same = fxprune.apply(model, Plan({}, {}), inputs)
    # Attention is legalized: the same sums, by another kernel.
    legalized = any(isinstance(module, torch.nn.MultiheadAttention) for module in model.modules())
    assert relative_error(run(same, inputs), run(model, inputs)) <= (1e-13 if legalized else 0.0)
    original = model.state_dict()
    assert all(torch.equal(value, original[name]) for name, value in same.state_dict().items())
    assert fxprune.plan_of(same).empty
    again = fxprune.apply(same, Plan({}, {}), inputs)
    assert again.code == same.code
    assert again.state_dict().keys() == same.state_dict().keys()


@share(0.5)
@given(cases())
def test_ratio_zero_is_the_empty_plan(case: Case) -> None:
    model, inputs = network(case)
    wanted = options(case)
    graph = fxprune.analyze(model, inputs, keep=wanted.pop("keep"))
    wanted["round_to"] = 1
    try:
        plan = fxprune.plan(graph, 0.0, **wanted)
    except BudgetError:
        return
    assert plan.empty
    assert plan.achieved == 0.0


@share(1)
@given(cases(mixing=False, most=6))
def test_plans_compose(case: Case) -> None:
    """Slimming twice gives a plan in the coordinates of the first network, and that plan alone does the same."""
    first = compiled(replace(case, ratio=min(case.ratio, 0.5), floor=0.1))
    if first is None:
        return
    try:
        second = fxprune.slim(first.slim, 0.4, first.inputs, absorb=False, verify=False)
    except BudgetError:
        return
    total = fxprune.plan_of(second)
    for name, dims in total.sizes.items():
        for dim, size in dims.items():
            assert size == first.plan.sizes.get(name, {}).get(dim, size)
            earlier = first.plan.kept.get(name, {}).get(dim, tuple(range(size)))
            assert set(total.kept[name][dim]) <= set(earlier)
    output = run(second, first.inputs)
    assert relative_error(output, zeroed(first.model, total, first.inputs)) <= TOLERANCE
    direct = fxprune.apply(copy.deepcopy(first.model), total, first.inputs, absorb=False, verify=False)
    assert relative_error(run(direct, first.inputs), output) <= TOLERANCE
    assert {n: tuple(p.shape) for n, p in direct.named_parameters()} == {n: tuple(p.shape) for n, p in second.named_parameters()}
    direct.load_state_dict(second.state_dict())


@share(0.5)
@given(cases(most=6))
def test_slimming_twice_keeps_the_masked_semantics(case: Case) -> None:
    first = compiled(replace(case, ratio=min(case.ratio, 0.5), floor=0.1))
    if first is None:
        return
    try:
        second = fxprune.slim(first.slim, 0.4, first.inputs, absorb=False, verify=True)
    except BudgetError:
        return
    fxprune.verify(first.model, second, first.inputs)
