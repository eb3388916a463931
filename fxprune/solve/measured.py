"""Latency budgets that the measurement meets, not only the prediction.

1. A plan is made for an *aim*, at first the bound itself; its model is timed. Where it is slower than the bound, the aim shrinks by as much as
   the time exceeded the bound, and the plan is made anew. Where it is faster than ``USED`` of the bound, the aim grows likewise. Between an aim
   that was met and one that was not, the next one is.
2. A bound that is a share is one of the original's time, as the clock gives it beside the slim model's; where the clock does not time the
   original, as the table says.
3. An aim that no plan reaches by the table's word does not end the search: the nearest plan is timed too, if it meets all other bounds.
4. Of all that were timed, the one that keeps the most score among those that meet the bound counts. If none does, that is an error, which
   says what was reached, and carries that plan.
5. The figures of the plan carry both: under "latency" also "predicted" and "measured", in seconds, and "rounds"; "achieved" is what was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from fxprune.errors import BudgetError
from fxprune.plan import Plan
from fxprune.solve.budget import Amount, Budget
from fxprune.solve.slack import UNUSED

ROUNDS, USED, CAUTION = 6, 0.95, 0.985
CLOSE = 0.01  # aims that differ by less are one
AGAIN = 0.93  # of the aim, where a smaller one gave the same plan
LATENCY = "latency"
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds of one call of a model, and of the original timed in turns with it (0: it was not)."""

    seconds: float
    original: float = 0.0


@dataclass(frozen=True, slots=True)
class Timed(Generic[Made]):
    """A plan, what was made of it, its seconds, and the seconds that it may take (clause 2)."""

    plan: Plan
    made: Made
    seconds: float
    bound: float
    original: float

    @property
    def over(self) -> float:
        """Seconds taken per second allowed."""
        return self.seconds / self.bound


def meet_latency(
    budget: Budget,
    decide: Callable[[Budget], Plan],
    make: Callable[[Plan], Made],
    clock: Callable[[Made], float | Reading],
    rounds: int = ROUNDS,
) -> Timed[Made]:
    """The best plan whose model meets the latency bound when it is timed (clauses 1 to 5).

    Args:
        budget: with a latency and a table.
        decide: plans for a budget, such as ``lambda b: fxprune.plan(graph, budget=b)``.
        make: the model of a plan, such as ``lambda p: fxprune.deploy(fxprune.apply(model, p, x))``.
        clock: seconds of one call of it; as a ``Reading``, with those of the original.
        rounds: how many plans may be timed.

    Raises:
        BudgetError: no latency is bounded; or none of the models timed meets the bound.
    """
    asked = budget.amounts().get((LATENCY, "*"))
    if asked is None:
        raise BudgetError("this budget bounds no latency, so there is nothing to time.", got=budget)
    tried: list[Timed[Made]] = []
    aims: list[tuple[float, bool]] = []  # and whether it was met
    aim = 0.0
    refusal: BudgetError | None = None
    for _ in range(2 * rounds):
        try:
            decided = decide(budget if not aim else replace(budget, latency=f"{aim!r}s"))
        except BudgetError as error:
            refusal, nearest = error, _nearest(error)
            if nearest is None and not tried:
                raise
            if nearest is None:
                break
            decided = nearest
        aim = aim or decided.figures[LATENCY]["asked"]
        known = next((t for t in tried if t.plan.kept == decided.kept), None)
        if known is None:
            if len(tried) == rounds:
                break
            tried.append(_timed(decided, make(decided), clock, asked))
        now = known or tried[-1]
        met = now.over <= 1
        if (met and (now.over >= USED or decided.empty or known is not None)) or (refusal is not None and not met):
            break
        refusal = None
        aims.append((aim, met))
        wanted = aim * (CAUTION / now.over if known is None else AGAIN)
        following = _following(aims, wanted)
        if following is None:
            break
        aim = following
    reached = [t for t in tried if t.over <= 1]
    if not reached:
        raise _unmet(tried, refusal)
    return _told(max(reached, key=lambda t: t.plan.figures["kept score"]["achieved"]), len(tried))


def _timed(plan: Plan, made: Made, clock: Callable[[Made], float | Reading], asked: Amount) -> Timed[Made]:
    """Clause 2."""
    read = clock(made)
    reading = read if isinstance(read, Reading) else Reading(read)
    original = reading.original or plan.figures[LATENCY]["original"]
    return Timed(plan, made, reading.seconds, asked.of(original), original)


def _following(aims: list[tuple[float, bool]], wanted: float) -> float | None:
    """The next aim (clause 1); None where aims come too close."""
    low = max((aim for aim, met in aims if met), default=0.0)
    high = min((aim for aim, met in aims if not met), default=float("inf"))
    if low and high < float("inf") and not low < wanted < high:
        wanted = (low + high) / 2
    return None if any(abs(wanted - aim) < CLOSE * aim for aim, _ in aims) else wanted


def _nearest(error: BudgetError) -> Plan | None:
    """Clause 3."""
    plan = error.nearest
    if not isinstance(plan, Plan) or LATENCY not in plan.figures:
        return None
    others = [own for name, own in plan.figures.items() if name != LATENCY and "asked" in own]
    return plan if all(own["achieved"] <= own["asked"] for own in others) else None


def _told(found: Timed[Made], rounds: int) -> Timed[Made]:
    """Clause 5."""
    figures = {
        "original": found.original,
        "asked": found.bound,
        "achieved": found.seconds,
        "predicted": found.plan.figures[LATENCY]["achieved"],
        "measured": found.seconds,
        "rounds": float(rounds),
    }
    note = (
        f"latency: {found.seconds * 1e3:.3g} ms measured, at most {found.bound * 1e3:.3g} ms asked, "
        f"{figures['predicted'] * 1e3:.3g} ms predicted, {_counted(rounds)}"
    )
    stale = (f"{LATENCY}: at most", "the budget was not met", UNUSED)
    notes = [note for note in found.plan.notes if not note.startswith(stale)]
    return replace(found, plan=replace(found.plan, figures={**found.plan.figures, LATENCY: figures}, notes=(*notes, note)))


def _unmet(tried: list[Timed[Made]], refusal: BudgetError | None) -> BudgetError:
    """Clause 4."""
    best = min(tried, key=lambda t: t.over)
    least = "" if refusal is None else f" By the prediction: {str(refusal).splitlines()[0]}"
    error = BudgetError(
        f"the latency budget of {best.bound * 1e3:.3g} ms was not met in {_counted(len(tried))}: the fastest model took {best.seconds * 1e3:.3g} ms "
        f"({best.plan.figures[LATENCY]['achieved'] * 1e3:.3g} ms were predicted; the original has {best.original * 1e3:.3g} ms). "
        f"Ask for more, lower floor= or round_to=, or measure again on a quiet machine.{least}",
        expected=best.bound,
        got=best.seconds,
    )
    error.nearest = _told(best, len(tried)).plan
    return error


def _counted(rounds: int) -> str:
    return f"{rounds} round" + "s" * (rounds != 1)
