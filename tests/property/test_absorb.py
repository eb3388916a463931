"""Absorption on random graphs: exact where it says so, proved by the verifier, rebuilt by plans and state dicts.

The oracle is the original network itself: where gamma is 0 on all that was removed and absorption claims to be exact, the slim network
must compute what the original computes, border pixels included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import event, given, settings
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import FxpruneError
from fxprune.plan import Plan
from tests.property.compiling import TOLERANCE, network, options, random_score, run
from tests.property.profile import share
from tests.property.program import build, randomise
from tests.property.strategies import Case, cases
from tests.reference.compare import relative_error


@dataclass(frozen=True)
class Silenced:
    """A network whose removed channels have gamma = 0 (or, where they pass no batch norm, filters of zeros), and the plan that removes them."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    plan: Plan


def scaled_first(seed: int) -> Any:
    """A score that removes channels with a scale factor before all others: those can be silenced."""
    score = random_score(seed)
    return lambda group: score(group) + (0.0 if group.gammas else 10.0)


def silenced(case: Case) -> Silenced | None:
    """None where nothing can go."""
    model, inputs = network(case)
    try:
        graph = fxprune.analyze(model, inputs, keep=case.keep)
        given = {**options(case), "score": scaled_first(case.seed)}
        del given["keep"]
        plan = fxprune.plan(graph, case.ratio, **given)
    except FxpruneError:
        return None
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    with torch.no_grad():
        for name, norm in norms.items():
            gone = list(plan.removed(f"{name}.weight", 0))
            gone += list(plan.silent.get(f"{name}.weight", {}).get(0, ()))
            if norm.affine:
                norm.weight[gone] = 0
        weights = dict(model.named_parameters(remove_duplicate=False))
        for member in (m for group in graph.groups if not group.gammas for m in group.members):
            weight = weights.get(member.name)
            if weight is not None and not member.reads and weight.dim() > 1 and member.blocks == 1:
                weight.index_fill_(member.dim, torch.tensor(plan.removed(member.name, member.dim), dtype=torch.long), 0.0)
    return Silenced(model, inputs, plan)


def slimmed(found: Silenced, absorb: object, *, verify: bool) -> fx.GraphModule | None:
    try:
        return fxprune.apply(found.model, found.plan, found.inputs, absorb=absorb, verify=verify)  # type: ignore[arg-type]
    except fxprune.RewriteError:
        return None  # slim() would pin; a plan that is given is an error


@share(0.7)
@given(cases())
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


@share(0.5)
@given(cases())
def test_constants_are_proved_and_state_dicts_fit(case: Case) -> None:
    """Whatever gamma is: the verifier agrees, and a plan with a state dict rebuilds the slim network."""
    model, inputs = network(case)
    how = (True, "exact", [inputs])[case.seed % 3]
    try:
        slim = fxprune.slim(model, case.ratio, inputs, **options(case), absorb=how, verify=True)  # type: ignore[arg-type]
    except (fxprune.BudgetError, fxprune.CaptureError):
        return
    plan = Plan.from_json(fxprune.plan_of(slim).to_json())
    assert plan == fxprune.plan_of(slim)
    added = {a.name for a in plan.added or ()}
    assert set(slim.state_dict()) - added <= set(model.state_dict())
    assert not added & set(model.state_dict())
    event("folds" if fxprune.absorption_of(slim).folds else "no folds")
    fresh = randomise(build(case.program), case.seed + 1)
    rebuilt = fxprune.apply(fresh, plan, inputs, verify=case.seed % 5 == 0)
    rebuilt.load_state_dict(slim.state_dict(), strict=True)
    assert list(rebuilt.state_dict()) == list(slim.state_dict())
    assert rebuilt.code == slim.code
    assert relative_error(run(rebuilt, inputs), run(slim, inputs)) == 0.0


def test_many_networks_are_absorbed_exactly() -> None:
    """An absorption that gave up everywhere would pass the properties above."""
    exact: list[bool] = []

    @settings(share(0.4), derandomize=True, database=None)
    @given(cases(mixing=False))
    def collect(case: Case) -> None:
        found = silenced(replace(case, ratio=0.3, floor=0.1, round_to=1, keep=()))
        slim = None if found is None else slimmed(found, "exact", verify=False)
        if slim is not None and fxprune.plan_of(slim).empty is False:
            exact.append(fxprune.absorption_of(slim).exact)

    collect()
    assert len(exact) >= 15
    assert sum(exact) / len(exact) >= 0.3
