"""Property: the selection layout equals the per-reader masked program, on random networks.

Two oracles share no code with the rewriter: the zeroed network (tests.reference.zeroed), in which every weight ignores what its batch norm
dropped and nothing else changes, so liveness may not show; and ``fxprune.verify``, the masked program, for everything.
"""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import fxprune
from fxprune.errors import BudgetError, PlanMismatchError
from fxprune.plan import Plan
from tests.property.compiling import TOLERANCE, Compiled, network, note, run
from tests.property.layers import BatchNorm, Conv, Linear, RawConv, TransposedConv
from tests.property.moves import Act
from tests.property.profile import share
from tests.property.program import Again, Program, Step, result_shapes
from tests.property.strategies import Case, cases
from tests.property.test_translation import check_weights
from tests.reference.compare import parameters, relative_error
from tests.reference.zeroed import zeroed

READERS = (Conv, RawConv, TransposedConv, Linear)


def normed(program: Program, bits: int) -> Program:
    """The program with batch norms and ReLUs in front of some of its layers, several of which may read one value."""
    steps: list[Step] = []
    value, step = list(range(len(program.inputs))), []
    count, shapes = len(program.inputs), program.shapes
    for number, (op, *args) in enumerate(program.steps):
        reads = [value[a] for a in args]
        if isinstance(op, READERS) and bits >> number & 1 and len(shapes[args[0]]) <= 3:
            steps += [(BatchNorm(), reads[0]), (Act(), count)]
            reads[0] = count + 1
            count += 2
        step.append(len(steps))
        steps.append((Again(step[op.step]) if isinstance(op, Again) else op, *reads))
        made = len(result_shapes(program.op(number), *[shapes[a] for a in args]))
        value += range(count, count + made)
        count += made
    return replace(program, steps=tuple(steps), outputs=tuple(value[o] for o in program.outputs))


@st.composite
def normed_cases(draw: Any, **kinds: Any) -> Case:
    """Cases whose programs have many batch norms."""
    case = draw(cases(**kinds))
    program = normed(case.program, draw(st.sampled_from([2**32 - 1, 0b0110110110110110, 0b1010101010])))
    owners = [f"v{first}" for first, (op, *_) in zip(program.firsts, program.steps, strict=True) if isinstance(op, Conv | Linear)]
    return replace(case, program=program, keep=(draw(st.sampled_from(owners)),) if case.keep and owners else ())


def selected(case: Case, *, verify: bool = False) -> Compiled | None:
    """A case slimmed in the selection layout; None if it has no batch norm, or nothing can go."""
    model, inputs = network(case)
    ratio, floor = case.ratio, case.floor
    while ratio > 0.02:
        try:
            slim = fxprune.slim(
                *(model, ratio, inputs),
                layout="selection",
                floor=floor,
                round_to=case.round_to,
                keep=case.keep,
                absorb=False,
                verify=verify,
            )
        except BudgetError:
            ratio /= 2
            continue
        plan = fxprune.plan_of(slim)
        note("selects" if "_select" in slim.code else "no selects")
        return Compiled(case, model, inputs, slim, plan)
    note("nothing to prune")
    return None


@share(1.5)
@given(normed_cases(mixing=False))
def test_selection_equals_the_zeroed_network(case: Case) -> None:
    c = selected(case)
    if c is None:
        return
    assert relative_error(run(c.slim, c.inputs), zeroed(c.model, c.plan, c.inputs)) <= TOLERANCE
    assert c.plan.empty or parameters(c.slim) < parameters(c.model)
    check_weights(c)


@share(0.8)
@given(normed_cases())
def test_selection_equals_the_masked_program(case: Case) -> None:
    c = selected(case, verify=True)
    if c is not None:
        fxprune.verify(c.model, c.slim, c.inputs)


@share(0.4)
@given(normed_cases(mixing=False, most=6))
def test_plans_copies_and_states(case: Case) -> None:
    """The plan survives JSON; it alone makes the same module, which takes the state; copies and pickles compute the same."""
    c = selected(case)
    if c is None:
        return
    output = run(c.slim, c.inputs)
    plan = Plan.from_json(c.plan.to_json())
    assert plan == c.plan
    again = fxprune.apply(copy.deepcopy(c.model), plan, c.inputs, absorb=False, verify=False)
    again.load_state_dict(c.slim.state_dict())
    assert set(c.slim.state_dict()) <= set(c.model.state_dict())
    for other in (again, copy.deepcopy(c.slim), pickle.loads(pickle.dumps(c.slim))):  # noqa: S301  # its own bytes
        assert relative_error(run(other, c.inputs), output) == 0.0


@share(0.4)
@given(normed_cases(mixing=False, most=6))
def test_rounds_compose(case: Case) -> None:
    """A second round, in either layout, gives a plan that does both at once."""
    first = selected(case)
    if first is None:
        return
    for layout in ("selection", "coupled"):
        try:
            second = fxprune.slim(first.slim, 0.4, first.inputs, layout=layout, absorb=False, verify=False)
        except BudgetError:
            continue
        total = fxprune.plan_of(second)
        output = run(second, first.inputs)
        assert relative_error(output, zeroed(first.model, total, first.inputs)) <= TOLERANCE
        try:
            direct = fxprune.apply(copy.deepcopy(first.model), total, first.inputs, absorb=False, verify=False)
        except PlanMismatchError:
            # Blocks that the first round leaves one channel each are single channels in the second, which may take some of them alone.
            graph = fxprune.analyze(first.model, first.inputs)
            assert graph.closed.uniform or graph.program.recorder.blocks
            continue
        assert {n: tuple(p.shape) for n, p in direct.named_parameters()} == {
            n: tuple(p.shape) for n, p in second.named_parameters()
        }
        direct.load_state_dict(second.state_dict())
        assert relative_error(run(direct, first.inputs), output) <= TOLERANCE


@share(0.4)
@given(normed_cases(mixing=False))
def test_a_larger_ratio_keeps_nothing_more(case: Case) -> None:
    model, inputs = network(case)
    graph = fxprune.analyze(model, inputs, keep=case.keep)
    before: Plan | None = None
    for ratio in (0.1, 0.3, 0.6, 0.8):
        try:
            plan = fxprune.plan(graph, ratio, layout="selection", floor=case.floor, round_to=case.round_to)
        except BudgetError:
            return
        for name, dims in plan.kept.items() if before is not None else ():
            for dim, rows in dims.items():
                assert set(rows) <= set(before.kept[name][dim]), (name, dim)  # type: ignore[union-attr]
        assert before is None or before.achieved <= plan.achieved
        before = plan
