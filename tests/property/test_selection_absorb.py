"""Absorption under the selection layout, on random networks: constants of what a batch norm drops go into the readers behind it.

Three oracles: the original network, where gamma is 0 on all that was dropped and absorption claims to be exact; ``fxprune.verify``, which works
corrections out anew; and the network that a plan and a state dict rebuild.
"""

from __future__ import annotations

import copy

import torch
from hypothesis import event, given, settings
from torch import nn

import fxprune
from fxprune.errors import BudgetError, FxpruneError, PlanMismatchError
from fxprune.plan import Plan
from tests.property.compiling import TOLERANCE, network, run
from tests.property.profile import share
from tests.property.program import build, randomise
from tests.property.strategies import Case
from tests.property.test_absorb import Silenced, slimmed
from tests.property.test_selection import normed_cases
from tests.reference.compare import relative_error


def silenced(case: Case) -> Silenced | None:
    """A network with gamma = 0 on all that the plan's batch norms drop; None where nothing can go."""
    model, inputs = network(case)
    try:
        graph = fxprune.analyze(model, inputs, keep=case.keep)
        plan = fxprune.plan(graph, case.ratio, layout="selection", floor=case.floor, round_to=case.round_to)
    except FxpruneError:
        return None
    with torch.no_grad():
        for name, norm in model.named_modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine:
                gone = {*plan.removed(f"{name}.weight", 0), *plan.silent.get(f"{name}.weight", {}).get(0, ())}
                norm.weight[sorted(gone)] = 0
    return Silenced(model, inputs, plan)


@share(0.4)
@given(normed_cases())
def test_exact_is_the_original(case: Case) -> None:
    found = silenced(case)
    slim = None if found is None else slimmed(found, "exact", verify=True)
    if found is None or slim is None:
        return
    absorption = fxprune.absorption_of(slim)
    event("exact" if absorption.exact else "not exact")
    if absorption.exact:
        assert relative_error(run(slim, found.inputs), run(found.model, found.inputs)) <= TOLERANCE
        more = tuple(torch.cat([x, 2 * x.flip(0)]) for x in found.inputs)
        assert relative_error(run(slim, more), run(found.model, more)) <= TOLERANCE


@share(0.3)
@given(normed_cases())
def test_constants_are_proved_and_state_dicts_fit(case: Case) -> None:
    """Whatever gamma is: the verifier agrees, and a plan with a state dict rebuilds the slim network."""
    model, inputs = network(case)
    how = (True, "exact", [inputs])[case.seed % 3]
    try:
        slim = fxprune.slim(
            *(model, case.ratio, inputs),
            layout="selection",
            floor=case.floor,
            keep=case.keep,
            absorb=how,
            verify=True,
            strict=True,
        )
    except (fxprune.BudgetError, fxprune.CaptureError):
        return
    event("folds" if fxprune.absorption_of(slim).folds else "no folds")
    plan = Plan.from_json(fxprune.plan_of(slim).to_json())
    fresh = randomise(build(case.program), case.seed + 1)
    rebuilt = fxprune.apply(fresh, plan, inputs, verify=case.seed % 5 == 0)
    rebuilt.load_state_dict(slim.state_dict(), strict=True)
    assert rebuilt.code == slim.code
    assert relative_error(run(rebuilt, inputs), run(slim, inputs)) == 0.0


@share(0.2)
@given(normed_cases(mixing=False, most=6))
def test_rounds_compose(case: Case) -> None:
    """A second round, in either layout, with constants of its own: one plan and one state dict for both, verified against the original."""
    model, inputs = network(case)
    try:
        first = fxprune.slim(model, case.ratio, inputs, layout="selection", floor=case.floor, absorb="exact")
    except BudgetError:
        return
    for layout in ("selection", "coupled"):
        try:
            second = fxprune.slim(first, 0.4, inputs, layout=layout, absorb="exact")
        except BudgetError:
            continue
        fxprune.verify(model, second, inputs)
        total = fxprune.plan_of(second)
        try:
            direct = fxprune.apply(copy.deepcopy(model), total, inputs, verify=False)
        except PlanMismatchError:
            continue  # blocks of one channel each (test_selection.py)
        direct.load_state_dict(second.state_dict())
        assert relative_error(run(direct, inputs), run(second, inputs)) <= TOLERANCE


def test_many_networks_are_absorbed_exactly() -> None:
    """An absorption that gave up everywhere would pass the properties above."""
    exact: list[bool] = []

    @settings(share(0.4), derandomize=True, database=None)
    @given(normed_cases(mixing=False))
    def collect(case: Case) -> None:
        found = silenced(case)
        slim = None if found is None else slimmed(found, "exact", verify=False)
        if slim is not None and not fxprune.plan_of(slim).empty:
            exact.append(fxprune.absorption_of(slim).exact)

    collect()
    assert len(exact) >= 15
    assert sum(exact) / len(exact) >= 0.5
