"""A budget is met by the model that comes out, to the last unit, whatever the network; or the error says what is the least possible."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from torch import fx

import fxprune
from fxprune import Budget, BudgetError
from fxprune.solve.plans import removed_channels
from tests.property.compiling import network, options
from tests.property.profile import share
from tests.property.strategies import Case, cases
from tests.property.test_cost import counted

KINDS = ("params", "macs", "activation_bytes")
amounts = st.dictionaries(st.sampled_from(KINDS), st.sampled_from([0.3, 0.5, 0.7, 0.9]), min_size=1, max_size=2)


def slimmed(case: Case, amounts: dict[str, float], **more: Any) -> tuple[fxprune.Plan, dict[str, int]] | None:
    """The plan and what the slim model costs. What is out of reach is asked for again, half-way between the least possible and all."""
    model, inputs = network(case)

    def slim(asked: dict[str, float]) -> fx.GraphModule:
        return fxprune.slim(model, None, inputs, budget=Budget(**asked), **options(case), **more, verify=False)  # type: ignore[arg-type]

    refused: BudgetError | None = None
    try:
        made = slim(amounts)
    except fxprune.NothingToPruneError:
        return None
    except BudgetError as error:
        refused = error
    if refused is not None:
        event("out of reach")
        assert refused.got < refused.expected  # type: ignore[operator]
        assert isinstance(refused.nearest, fxprune.Plan)
        assert "cannot be met" in str(refused)
        figures = refused.nearest.figures
        reachable = {kind: (figures[kind]["achieved"] / figures[kind]["original"] + 1) / 2 for kind in amounts}
        try:
            made = slim(reachable)
        except BudgetError as error:  # what cannot be emitted was pinned since, and the error says so
            if " stay because " not in str(error):
                raise
            return None
    return fxprune.plan_of(made), counted(made, inputs, model)


@share(0.3)
@given(cases(most=6), amounts)
def test_budgets_are_met(case: Case, amounts: dict[str, float]) -> None:
    found = slimmed(case, amounts)
    if found is None:
        return
    plan, costs = found
    for kind, figures in plan.figures.items():
        if kind in costs:
            assert figures["achieved"] == costs[kind] <= figures["asked"] * (1 + 1e-12)
    score = plan.figures["kept score"]
    assert score["achieved"] <= score["bound"] * (1 + 1e-9)


@share(0.1)
@given(cases(most=6), amounts, st.sampled_from(["uniform", "isomorphic", "threshold", "below"]))
def test_other_scopes_meet_budgets_too(case: Case, amounts: dict[str, float], scope: str) -> None:
    found = slimmed(case, amounts, scope=scope)
    if found is not None:
        plan, costs = found
        assert all(plan.figures[kind]["achieved"] == costs[kind] <= plan.figures[kind]["asked"] for kind in amounts)


@share(0.1)
@given(cases(most=6), amounts)
def test_the_same_problem_has_the_same_plan(case: Case, amounts: dict[str, float]) -> None:
    model, inputs = network(case)
    graph = fxprune.analyze(model, inputs, keep=case.keep)
    try:
        plans = [fxprune.plan(graph, budget=Budget(**amounts), **options_of_plan(case)) for _ in range(2)]  # type: ignore[arg-type]
    except BudgetError:
        return
    assert plans[0] == plans[1]
    assert fxprune.Plan.from_json(plans[0].to_json()) == plans[0]


@share(0.3)
@given(
    cases(most=6),
    st.one_of(amounts, st.sampled_from([0.2, 0.5])),
    st.sampled_from(["global", "uniform", "isomorphic", "threshold", "below"]),
    st.sampled_from([0.05, 0.3, 0.6]),
    st.sampled_from([1, 2, 3, 4]),
)
def test_floors_hold_and_widths_are_multiples(case: Case, asked: Any, scope: str, floor: float, round_to: int) -> None:
    """Of every group, whatever is coupled, balanced or thinned in step with others, and whatever was asked."""
    model, inputs = network(case)
    graph = fxprune.analyze(model, inputs, keep=case.keep)
    given = {"ratio": asked} if isinstance(asked, float) else {"budget": Budget(**asked)}
    try:
        plan = fxprune.plan(graph, **given, **{**options_of_plan(case), "floor": floor, "round_to": round_to, "scope": scope})
    except BudgetError as error:
        if not isinstance(error.nearest, fxprune.Plan):
            return
        plan = error.nearest
    gone = removed_channels(graph, plan)
    for group in graph.groups:
        left = int((~gone[group.channels]).sum())
        assert left >= max(1, math.ceil(floor * len(group) - 1e-9)), f"{group.name} keeps {left} of {len(group)}"
        assert left == len(group) or left % round_to == 0, f"{group.name} keeps {left} of {len(group)}"


def options_of_plan(case: Case) -> dict[str, Any]:
    found = options(case)
    del found["keep"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@share(5)
@given(cases(), amounts)
def test_many_budgets_are_met(case: Case, amounts: dict[str, float]) -> None:
    found = slimmed(case, amounts)
    if found is not None:
        plan, costs = found
        assert all(plan.figures[kind]["achieved"] == costs[kind] <= plan.figures[kind]["asked"] for kind in amounts)
