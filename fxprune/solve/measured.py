"""Latency budgets that the measurement meets, not only the prediction.

1. A plan is made for an *aim*, at first the bound itself; its model is timed. Where it is slower than the bound, the aim shrinks by as much as
   the time exceeded the bound, and the plan is made anew. Where it is faster than ``USED`` of the bound, the aim grows likewise.
2. Of all that were timed, the one that keeps the most score among those that meet the bound counts. If none does, that is an error, which
   says what was reached.
3. The figures of the plan carry what was measured: under "latency" also "measured", in seconds, and "rounds".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from fxprune.errors import BudgetError
from fxprune.plan import Plan
from fxprune.solve.budget import Budget

ROUNDS, USED, CAUTION = 4, 0.95, 0.995
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Timed(Generic[Made]):
    """A plan, what was made of it, and its seconds."""

    plan: Plan
    made: Made
    seconds: float


def meet_latency(
    budget: Budget,
    decide: Callable[[Budget], Plan],
    make: Callable[[Plan], Made],
    clock: Callable[[Made], float],
    rounds: int = ROUNDS,
) -> Timed[Made]:
    """The best plan whose model meets the latency bound when it is timed (clauses 1 to 3).

    Args:
        budget: with a latency and a table.
        decide: plans for a budget, such as ``lambda b: fxprune.plan(graph, budget=b)``.
        make: the model of a plan, such as ``lambda p: fxprune.deploy(fxprune.apply(model, p, x))``.
        clock: seconds of one call of it.
        rounds: how many plans may be timed.

    Raises:
        BudgetError: no latency is bounded; or none of the models timed meets the bound.
    """
    if budget.latency is None:
        raise BudgetError("this budget bounds no latency, so there is nothing to time.", got=budget)
    tried: list[Timed[Made]] = []
    bound, aim = 0.0, 0.0
    while len(tried) < rounds:
        asked = budget if not tried else replace(budget, latency=f"{aim!r}s")
        try:
            decided = decide(asked)
        except BudgetError:
            if not tried:
                raise
            break
        bound = bound or decided.figures["latency"]["asked"]
        aim = aim or bound
        made = make(decided)
        tried.append(Timed(decided, made, clock(made)))
        over = tried[-1].seconds / bound
        if USED <= over <= 1:
            break
        aim *= CAUTION / over
        if any(abs(aim - t.plan.figures["latency"]["asked"]) < 1e-3 * aim for t in tried):
            break
    met = [t for t in tried if t.seconds <= bound]
    if not met:
        best = min(tried, key=lambda t: t.seconds)
        raise BudgetError(
            f"the latency budget of {bound * 1e3:.3g} ms was not met in {len(tried)} rounds: the fastest model took {best.seconds * 1e3:.3g} ms, "
            f"where {best.plan.figures['latency']['achieved'] * 1e3:.3g} ms were predicted. Ask for more, or measure again on a quiet machine.",
            expected=bound,
            got=best.seconds,
        )
    found = max(met, key=lambda t: t.plan.figures["kept score"]["achieved"])
    latency = {**found.plan.figures["latency"], "asked": bound, "measured": found.seconds, "rounds": float(len(tried))}
    note = f"latency: {found.seconds * 1e3:.3g} ms measured, at most {bound * 1e3:.3g} ms asked, {len(tried)} rounds"
    plan = replace(found.plan, figures={**found.plan.figures, "latency": latency}, notes=(*found.plan.notes, note))
    return replace(found, plan=plan)
