"""Properties 4 and 5: names of parameters survive; plans survive JSON; a plan and a state dict rebuild the slim network."""

from __future__ import annotations

from hypothesis import given

import fxprune
from fxprune.plan import Plan
from tests.property.compiling import compiled, run
from tests.property.profile import share
from tests.property.program import build, randomise
from tests.property.strategies import Case, cases
from tests.reference.compare import relative_error, used_names


@share(1)
@given(cases())
def test_state_dict_keys_are_those_of_the_original(case: Case) -> None:
    c = compiled(case)
    if c is None:
        return
    keys = set(c.slim.state_dict())
    assert keys <= set(c.model.state_dict())
    assert {n for n, _ in c.slim.named_parameters()} <= {n for n, _ in c.model.named_parameters()}
    if case.floor > 0:  # no layer is emptied
        assert keys >= used_names(c.model)


@share(1.2)
@given(cases(setitem=True))
def test_a_plan_and_a_state_dict_rebuild_the_slim_network(case: Case) -> None:
    c = compiled(case)
    if c is None:
        return
    plan = Plan.from_json(c.plan.to_json())
    assert plan == c.plan
    assert plan.to_json() == c.plan.to_json()
    fresh = randomise(build(case.program), case.seed + 1)
    rebuilt = fxprune.apply(fresh, plan, c.inputs, absorb=False, verify=False)
    rebuilt.load_state_dict(c.slim.state_dict(), strict=True)
    assert list(rebuilt.state_dict()) == list(c.slim.state_dict())
    assert relative_error(run(rebuilt, c.inputs), run(c.slim, c.inputs)) == 0.0
    assert rebuilt.code == c.slim.code


@share(0.6)
@given(cases(most=5))
def test_applying_a_plan_to_the_same_network_is_slimming_it(case: Case) -> None:
    c = compiled(case)
    if c is None:
        return
    again = fxprune.apply(c.model, c.plan, c.inputs, absorb=False, verify=False)
    assert relative_error(run(again, c.inputs), run(c.slim, c.inputs)) == 0.0
    assert fxprune.plan_of(again).kept == c.plan.kept
