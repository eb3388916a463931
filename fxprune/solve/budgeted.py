"""A plan's channels for a budget: what the entry points call.

1. The limits hold exactly, to the last unit. As much score is kept as the scope allows (optimise.py, scopes.py).
2. What cannot be reached is an error that says which limit, what the least possible in this scope is, what binds, and carries the nearest plan's
   solution. Where the search for a plan fails and the least possible meets the limits, that is the plan.
3. The figures of a solution are those of ``Plan.figures``; its notes say them in words, and what binds where a part of the budget is unused
   (slack.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from fxprune.errors import BudgetError, NothingToPruneError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.cost import Cost
from fxprune.provenance.factor import Mask
from fxprune.score.scores import Scored
from fxprune.solve.budget import Budget
from fxprune.solve.landscape import Limit
from fxprune.solve.limits import limits
from fxprune.solve.optimise import Problem, bound_on, dead_wholes, free_wholes, optimise
from fxprune.solve.ratio import Solution, channel_weights, check_options, check_ratio, nothing
from fxprune.solve.scopes import ONE, Shares, plain
from fxprune.solve.slack import unused
from fxprune.solve.slots import leasts, score_values


def solve_budget(
    graph: ChannelGraph, scored: Scored, budget: Budget, floor: float = 0.1, round_to: int = 1, scope: str = "global"
) -> Solution:
    """What goes (clauses 1 to 3).

    Raises:
        BudgetError: limits that cannot be met (clause 2), or that make no sense for this model.
        NothingToPruneError: no channel can go at all.
    """
    check_options(floor, round_to)
    if not isinstance(budget, Budget):
        raise BudgetError(
            f"budget must be a fxprune.Budget, such as Budget(macs=0.5), got {budget!r}.", got=type(budget).__name__
        )
    if not graph.groups:
        raise NothingToPruneError(nothing(graph), got=budget)
    cost = Cost(graph)
    problem = Problem(
        graph, cost, limits(graph, cost, budget), score_values(graph, scored), leasts(graph, floor, budget.floors), round_to
    )
    if scope in ONE:
        problem = replace(problem, ranks=plain(graph, scored))
    whole = np.zeros(graph.closed.count, np.bool_)
    if problem.met(whole):
        return _solution(problem, whole, problem.total, ("the model meets the budget as it is: nothing goes",))
    found = optimise(problem) if scope == "global" else None
    if found is not None:
        return _solution(problem, found.removed, found.bound, _bound_by(problem, found.removed, scope))
    choices = problem.choices()
    places = Shares(graph, choices, scope, scored).within() if scope != "global" and choices.land.slots.slots else None
    removed = _least(problem, scope, scored) if places is None else choices.land.slots.removed(choices.at(places))
    if not problem.holds(removed):
        raise _unreachable(problem, budget, floor, partial(_least, scope=scope, scored=scored))
    notes = () if scope == "global" else (f"scope {scope}: the gap is to what any plan could keep",)
    notes = (*notes, *_bound_by(problem, removed, scope))
    return _solution(problem, removed, bound_on(problem, problem.kept(removed)), notes)


def _bound_by(problem: Problem, removed: Mask, scope: str) -> tuple[str, ...]:
    """What keeps a plan from using its budget, in words (clause 3)."""
    return (*problem.rounded_to_nothing(wholes=scope == "global"), *unused(problem, removed, scope))


def check_asked(ratio: object, budget: object) -> None:
    """Exactly one of both.

    Raises:
        BudgetError: both, or neither.
    """
    if ratio is None and budget is None:
        raise BudgetError(
            "ratio is missing: the share of channels to remove, in [0, 1). Or give budget=, such as fxprune.Budget(macs=0.5).",
            expected="[0, 1)",
            got=ratio,
        )
    if ratio is not None and budget is not None:
        raise BudgetError(
            f"give ratio= (the share of channels to remove) or budget= (what may remain), not both; got ratio={ratio!r} and {budget!r}.",
            got=(ratio, budget),
        )


def solve_share(graph: ChannelGraph, scored: Scored, ratio: float, floor: float, round_to: int, scope: str) -> Solution:
    """What goes for a ratio where every class of groups loses the same share (scopes.py).

    Raises:
        BudgetError: a ratio outside [0, 1), or one that floors and balances do not allow.
        NothingToPruneError: no channel can go at all.
    """
    ratio = check_ratio(ratio)
    check_options(floor, round_to)
    if not graph.groups:
        raise NothingToPruneError(nothing(graph), got=ratio)
    problem = Problem(graph, Cost(graph), (), score_values(graph, scored), leasts(graph, floor, {}), round_to)
    choices = problem.choices()
    slots = choices.land.slots
    if not slots.slots:
        raise NothingToPruneError(f"no channel can go with floor={floor:g} and round_to={round_to}: lower them.", got=ratio)
    shares = Shares(graph, choices, scope, scored)
    removed = slots.removed(choices.at(shares.at(ratio)))
    weight = channel_weights(graph)
    total = sum(int(weight[g.channels].sum()) for g in graph.groups)
    gone, most = (
        sum(int(weight[g.channels][mask[g.channels]].sum()) for g in graph.groups) / total
        for mask in (removed, slots.removed(choices.at(shares.at(1.0))))
    )
    if ratio > most + 0.5 / max(len(g) for g in graph.groups):
        raise BudgetError(
            f"ratio {ratio:g} cannot be reached: floor={floor:g} and the balances of the network allow {most:.3f} at most. Ask for less, or "
            "lower floor.",
            expected=most,
            got=ratio,
        )
    return Solution(removed, ratio, gone, (f"scope {scope}", *problem.rounded_to_nothing(wholes=False)))


def _solution(problem: Problem, removed: Mask, bound: float, notes: tuple[str, ...]) -> Solution:
    """Clause 3."""
    graph = problem.graph
    weight = channel_weights(graph)
    gone = sum(int(weight[g.channels][removed[g.channels]].sum()) for g in graph.groups)
    total = sum(int(weight[g.channels].sum()) for g in graph.groups)
    costs = problem.costs(removed)
    kept, whole = problem.kept(removed), problem.total
    figures: dict[str, Mapping[str, float]] = {
        limit.name: {"original": limit.original, "asked": limit.bound, "achieved": float(now)}
        for limit, now in zip(problem.limits, costs, strict=True)
    }
    gap = (bound - kept) / bound if bound > 0 else 0.0
    figures["kept score"] = {"original": whole, "achieved": kept, "bound": bound, "gap": gap}
    told = [*notes, *(_told(limit, float(now)) for limit, now in zip(problem.limits, costs, strict=True))]
    told.append(
        f"kept {kept / whole if whole else 1:.1%} of the score; no plan for this budget keeps more than {bound / whole if whole else 1:.1%}"
    )
    return Solution(removed, 0.0, gone / total, tuple(told), (), figures)


def _told(limit: Limit, now: float) -> str:
    share = now / limit.original if limit.original else 0.0
    return f"{limit.name}: at most {amount(limit, limit.bound)} asked, {amount(limit, now)} left ({share:.2%} of the original)"


def amount(limit: Limit, value: float) -> str:
    """A cost in words."""
    return f"{value * 1e3:.3g} ms (predicted)" if limit.kind == "latency" else f"{value:,.0f}"


def _unreachable(problem: Problem, budget: Budget, floor: float, reach: Callable[[Problem], Mask]) -> BudgetError:
    """Clause 2. ``reach``: what goes at most in this scope."""
    removed = reach(problem)
    costs = problem.costs(removed)
    worst = int(np.argmax(costs / np.array([limit.bound for limit in problem.limits])))
    limit, least = problem.limits[worst], float(costs[worst])
    share = f"{least / limit.original:.1%} of the original" if limit.original else ""
    looser = [
        (
            f"floor={floor:g}" + (" (and floors=)" if budget.floors else ""),
            reach(replace(problem, least=leasts(problem.graph, 0.0, {}))),
        ),
        (f"round_to={problem.round_to}", reach(replace(problem, round_to=1))),
        ("the scope", least_possible(problem)),
    ]
    binds = []
    for name, other in looser:
        reached = float(problem.costs(other)[worst])
        if reached < least * (1 - 1e-9):
            without = "with scope='global'" if name == "the scope" else "without it"
            binds.append(f"{name} binds: {without} {reached / limit.original:.1%} could be reached")
    pinned = sorted((c for c in problem.graph.constraints if c.kind == "pinned" and c.axes), key=lambda c: -c.channels)[:2]
    if not binds:
        binds.append("what is left cannot go")
    reasons = "; ".join(f"{c.axes[0]} ({c.channels} channels) at node {c.node!r}: {c.reason}" for c in pinned)
    stays = [note for note in problem.graph.notes if " stay because " in note]
    text = (
        f"the budget cannot be met: {limit.name} of at most {amount(limit, limit.bound)} was asked, and the least that can be reached is "
        f"{amount(limit, least)} ({share}). {'; '.join(binds)}."
        + (f" Pinned: {reasons}." if reasons else "")
        + (f" {' '.join(stays)}." if stays else "")
        + " Ask for more, or lower what binds."
    )
    error = BudgetError(text, expected=least, got=limit.bound)
    error.nearest = _solution(problem, removed, problem.kept(removed), ("the budget was not met; this is the nearest plan",))
    return error


def _least(problem: Problem, scope: str, scored: Scored) -> Mask:
    """What is gone when everything goes that may in a scope; no wholes go but in scope global (scopes.py, clause 5)."""
    if scope == "global":
        return least_possible(problem)
    choices = problem.choices()
    slots = choices.land.slots
    return slots.removed(choices.at(Shares(problem.graph, choices, scope, scored).at(1.0)) if slots.slots else [])


def least_possible(problem: Problem) -> Mask:
    """What is gone when everything goes that may, of channels and of wholes."""
    families = problem.graph.closed.families if problem.round_to == 1 else ()
    chosen: list[tuple[int, int]] = []
    for f in range(len(families)):
        for w in free_wholes(problem, f):
            if dead_wholes(problem, [*chosen, (f, w)]) is not None:
                chosen.append((f, w))
    candidates = []
    for dead in [None, dead_wholes(problem, chosen)] if chosen else [None]:
        choices = problem.choices(dead)
        slots = choices.land.slots
        candidates.append(slots.removed(choices.at(choices.share(1.0)) if slots.slots else []))
    bounds = np.array([limit.bound for limit in problem.limits])
    return min(candidates, key=lambda removed: float((problem.costs(removed) / bounds).max()))
