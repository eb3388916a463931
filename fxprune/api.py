"""The public entry points: the pipeline's stages, composed.

``slim`` = capture, analyze, score, solve, rewrite, verify. The input model is never changed; a call either returns a verified
smaller ``GraphModule`` or raises.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from torch import fx, nn

from fxprune.absorb.stage import Asked, absorbed, asked
from fxprune.errors import BudgetError, FxpruneWarning, PlanMismatchError
from fxprune.failsafe import Finish, emit_verified
from fxprune.folds import Absorption
from fxprune.graph.channels import ChannelGraph
from fxprune.layouts import LAYOUTS, choose, in_layout
from fxprune.pipeline import Subject, emit_settled, study, verified, verified_eager
from fxprune.plan import Plan
from fxprune.record import attach, entered_by, extended, record_of
from fxprune.score.data import DataScore, on
from fxprune.score.scores import Score, Scored
from fxprune.score.scores import score as score_groups
from fxprune.solve.budget import Budget
from fxprune.solve.budgeted import check_asked, solve_budget, solve_share
from fxprune.solve.plans import to_plan
from fxprune.solve.ranked import ranking
from fxprune.solve.ratio import Solution, check_options, check_ratio, solve_ratio
from fxprune.solve.scopes import ONE, RANKING, check_scope
from fxprune.solve.selection import ranked, select_channels
from fxprune.timed import Once, lacks_table, meeting, rounded, with_table
from fxprune.train.readiness import warn_if_large
from fxprune.verify import Evidence

Absorb = bool | str | Iterable[Any]
VERIFIED_PARAMETERS = 300_000_000  # two float64 copies of the weights: up to 5 GB


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Pause the cyclic garbage collector: a compile allocates many small objects that live until it ends, and scanning them is in vain."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_undisturbed()
def analyze(model: nn.Module, example_inputs: Any = None, *, keep: Sequence[str] = ()) -> ChannelGraph:
    """Capture a model and compute its channel graph.

    Args:
        model: any traceable module; only read.
        example_inputs: a tensor, a tuple of arguments, a dict of keyword arguments; inferred if left out.
        keep: names (globs) of modules or parameters whose channels must stay.

    Raises:
        CaptureError: the model cannot be traced.
        InputError: example inputs do not fit or cannot be inferred.
        KeepError: a name in ``keep`` that matches nothing.
        WeightError: weights that cannot be pruned.
    """
    return study(model, example_inputs, keep).graph


def plan(
    graph: ChannelGraph,
    ratio: float | None = None,
    *,
    budget: Any = None,
    score: str | Score | DataScore = "auto",
    layout: str = "coupled",
    floor: float = 0.1,
    round_to: int | None = None,
    scope: str = "global",
) -> Plan:
    """Decide which channels go, for a ratio or for a budget.

    Args:
        graph: what ``analyze`` returned.
        ratio: share of channels to remove, in [0, 1).
        budget: a ``Budget``: upper bounds on what remains (parameters, MACs, ...). As much score is kept as they allow. A latency without a table
            has the layers measured, here and now; the plan meets it by prediction. ``slim`` times the outcome too.
        layout: "coupled": a channel goes when its whole coupling class goes. "selection": every batch norm drops its own channels, behind a
            select where others need them (docs/selection.md); it takes a ratio, no budget. "auto": the faster of both at the same score: the layout
            that keeps more of the scale factors at this ratio goes on removing while it keeps as much as the other one.
        score: "auto" ("gamma" where every group has one, else "magnitude"; for a budget, but with scopes "threshold" and "below", "gamma:log" and
            "magnitude:log"), the name of a score of the weights ("gamma", "magnitude", "l1", ...; ``fxprune.score.NAMED``), "name:normalisation",
            a callable ``(ChannelGroup) -> tensor (channels,)``, or a score that looks at data (``fxprune.score.taylor(loader, loss)``, ...).
        floor: share of each group that stays, at least one channel. 0 allows emptied layers for a ratio that ranks all channels (scope "global" or
            "threshold"); budgets, and the other scopes, keep one channel even so.
        round_to: widths of groups become multiples of this, or stay (the plan's notes name groups that it leaves whole). Unless told 1; with
            a latency budget, what the measurements show to be cheap.
        scope: what is ranked against what: "global" (for a budget, the most score that it can keep), "uniform" (every group loses the same share),
            "isomorphic" (every class of structurally equal groups does, with one ranking per class), "threshold" (one ranking of all channels),
            "below" (the same, with widths rounded down).

    Raises:
        BudgetError: a ratio or budget that makes no sense or cannot be reached, both, or neither.
        NothingToPruneError: no channel can go.
    """
    return _planned(graph, ratio, ratio, budget, score, layout, floor, round_to, scope)


def _planned(
    graph: ChannelGraph,
    ratio: float | None,
    given: float | None,
    budget: Any,
    score: str | Score | DataScore,
    layout: str,
    floor: float,
    round_to: int | None,
    scope: str,
) -> Plan:
    """``plan``. ``given``: the ratio that was asked; layout="auto" may solve for a larger one."""
    check_asked(ratio, budget)
    ratio, given = (None if share is None else check_ratio(share) for share in (ratio, given))
    check_scope(scope)
    check_options(floor, 1 if round_to is None else round_to)
    if layout not in LAYOUTS:
        raise BudgetError(f"layout must be 'coupled', 'selection' or 'auto', got {layout!r}.", expected="coupled", got=layout)

    if layout == "auto":
        score = Once(score) if isinstance(score, DataScore) and not isinstance(score, type) else score

        def again(graph: ChannelGraph, layout: str, share: float | None) -> Plan:
            return _planned(graph, share, given, budget, score, layout, floor, round_to, scope)

        chosen = choose(graph, again, ratio, lambda graph: on(score, graph))
        made = again(chosen.graph, chosen.layout, chosen.ratio)
        return replace(made, notes=(*made.notes, chosen.note))
    if layout == "selection" and (budget is not None or scope not in RANKING):
        raise BudgetError(
            "layout='selection' takes a ratio over all batch norms (ratio=, scope='global'). Budgets and other scopes need layout='coupled'.",
            expected="coupled",
            got=layout,
        )
    graph = in_layout(graph, layout)
    if layout == "selection":
        scored, solution = select_channels(
            graph, cast("float", ratio), on(score, graph), floor, 1 if round_to is None else round_to
        )
        shown = ranked(graph)
    else:
        seen = on(score, graph)
        known = _measured(graph, budget, seen, floor, round_to, scope)
        solved, told = rounded(known, round_to, lambda step: _solved(graph, ratio, known, seen, floor, step, scope))
        told = told if solved[1].removed.any() else ()
        scored, solution, shown = solved[0], replace(solved[1], notes=(*solved[1].notes, *told)), graph
    warn_if_large(shown.groups, scored.name, solution.removed, given, scored.values)
    solution = solution if given is None else replace(solution, asked=given)
    return replace(to_plan(graph, solution, scored.name, layout), ranking=ranking(shown, scored, solution.removed))


def _measured(graph: ChannelGraph, budget: Any, score: Any, floor: float, round_to: int | None, scope: str) -> Any:
    """The budget with a table, if it needs one. Measuring takes minutes: what is wrong with anything else is said before."""
    if not lacks_table(budget):
        return budget
    others = replace(budget, latency=None) if len(budget.amounts()) > 1 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FxpruneWarning)  # said when the plan is made for good
        plan(graph, None if others else 0.0, budget=others, score=score, floor=floor, round_to=round_to, scope=scope)
    return with_table(graph, budget)


def _solved(
    graph: ChannelGraph, ratio: float | None, budget: Budget | None, score: str | Score, floor: float, round_to: int, scope: str
) -> tuple[Scored, Solution]:
    """What goes in the coupled layout. A budget keeps the largest sum: scores without a unit of their own are made shares (score/normalise.py)."""
    if budget is not None and score == "auto" and graph.groups and scope not in ONE:
        score = "gamma:log" if all(group.gammas for group in graph.groups) else "magnitude:log"
    scored = score_groups(graph.groups, score)
    if budget is not None:
        try:
            return scored, solve_budget(graph, scored, budget, floor, round_to, scope)
        except BudgetError as error:
            if isinstance(error.nearest, Solution):
                error.nearest = to_plan(graph, error.nearest, scored.name)
            raise
    share = cast("float", ratio)
    if scope in RANKING:
        return scored, solve_ratio(graph, scored, share, floor, round_to)
    return scored, solve_share(graph, scored, share, floor, round_to, scope)


@_undisturbed()
def apply(
    model: nn.Module, plan: Plan, example_inputs: Any = None, *, absorb: Absorb = True, verify: bool = True
) -> fx.GraphModule:
    """The slim model that a plan describes, for a fresh or trained instance of the same architecture.

    Args:
        model: the original; only read.
        plan: what ``plan`` or ``plan_of`` gave. One that has made a model names the tensors it added, and these are added again.
        example_inputs: as for ``analyze``.
        absorb: as for ``slim``.
        verify: prove the result equal to the masked original.

    Raises:
        PlanMismatchError: the plan belongs to another model.
        VerificationError: the slim model does not compute what the masked original computes.
    """
    what = asked(absorb)
    if not isinstance(plan, Plan):
        raise PlanMismatchError(
            f"plan must be a fxprune.Plan, got {type(plan).__name__}. Use Plan.from_json() for a JSON text.",
            got=type(plan).__name__,
        )
    subject = study(model, example_inputs, layout=plan.layout, given_plan=True)
    subject, final, module = emit_settled(subject, lambda _: plan, pin=False)
    final, absorption = _finish(what, adding=not plan.figures)(subject, final, module)
    evidence = None
    if verify:
        evidence = verified(subject, module, final, absorption)
        absorption = replace(absorption, difference=evidence.difference)
    record = extended(model, subject.graph, subject.inputs, final, subject.entered, absorption)
    attach(module, replace(record, evidence=evidence))
    return cast("fx.GraphModule", module)


def _finish(what: Asked, *, adding: bool = True) -> Finish:
    """Absorption. ``adding=False``: what remains has an upper bound, so constants go into tensors that are there."""

    def finish(subject: Subject, plan: Plan, module: nn.Module) -> tuple[Plan, Absorption]:
        plan = plan if adding or plan.added is not None else replace(plan, added=())
        return absorbed(subject.graph, subject.inputs, plan, module, what)

    return finish


def plan_of(slim: nn.Module) -> Plan:
    """The plan that made a slim module, in the coordinates of the original model.

    Raises:
        PlanMismatchError: the module was not made by fxprune.
    """
    found = record_of(slim)
    if found is None:
        raise PlanMismatchError(
            f"this {type(slim).__name__} carries no plan: it was not made by fxprune.", got=type(slim).__name__
        )
    return found.plan


@_undisturbed()
def slim(
    model: nn.Module,
    ratio: float | None = None,
    example_inputs: Any = None,
    *,
    budget: Any = None,
    score: str | Score | DataScore = "auto",
    layout: str = "coupled",
    floor: float = 0.1,
    round_to: int | None = None,
    scope: str = "global",
    keep: Sequence[str] = (),
    absorb: Absorb = True,
    verify: bool = True,
    strict: bool = False,
) -> fx.GraphModule:
    """A physically smaller, verified version of ``model``.

    Args: see ``analyze`` (model, example_inputs, keep), ``plan`` (ratio, budget, score, layout, floor, round_to, scope) and ``apply`` (verify).
        absorb: what becomes of the constant that a removed channel still emits (``act(beta)`` where gamma is 0, its expected value elsewhere).
            True: it goes into the biases and running means of what reads it, right wherever the window sees no zero padding. "exact": and into border
            maps, right everywhere. A loader (an iterable of batches): as True, with means over these data in the place of expected values. False:
            it is dropped, as the paper does. ``absorption_of`` reports. Eager modules drop it always.
        strict: raise where a plan cannot be verified. Otherwise the group of channels that is to blame stays, and the plan's notes say so.

    Verification compares numbers for models of up to ``VERIFIED_PARAMETERS`` parameters; beyond that the slim graph's shapes and channels
    are checked node by node as always, the plan's notes say that numbers were not compared, and ``fxprune.verify`` does so on request.

    Returns:
        A ``GraphModule`` on the model's device, in its dtype and mode, with its parameter names; ``plan_of`` tells what went. A model that no
        tracer takes (detectors, and others whose Python code decides upon numbers) is slimmed as an eager module: the result is then of the
        MODEL'S OWN class, with smaller parameters, and is no ``GraphModule``. The plan's notes say so.

    Raises:
        FxpruneError: one of its subclasses; nothing is returned and the model is unchanged.
    """
    what = asked(absorb)
    check_asked(ratio, budget)
    subject = study(model, example_inputs, keep, layout="selection" if layout == "selection" else "coupled")

    score = Once(score) if isinstance(score, DataScore) and not isinstance(score, type) else score
    if layout != "selection":
        budget = _measured(subject.graph, budget, score, floor, round_to, scope)

    def made(graph: ChannelGraph, layout: str, share: float | None, budget: Any = budget) -> Plan:
        return _planned(graph, share, ratio, budget, score, layout, floor, round_to, scope)

    share = ratio
    if layout == "auto":
        chosen = choose(subject.graph, made, ratio, lambda graph: on(score, graph))
        layout, share = chosen.layout, chosen.ratio
        noted = replace(chosen.graph, notes=(*chosen.graph.notes, chosen.note))
        subject = replace(subject, layout=layout, graph=noted)

    def planning(graph: ChannelGraph) -> Callable[[Budget], Plan]:
        return lambda bound: made(graph, layout, share, bound)

    timed = meeting(subject, budget, planning, _finish(replace(what, loader=None)))

    def decide(graph: ChannelGraph) -> Plan:
        return made(graph, layout, share) if timed is None else timed(graph)

    large = sum(t.numel() for t in subject.graph.tensors.values() if isinstance(t, nn.Parameter)) > VERIFIED_PARAMETERS
    if verify and not large:
        subject, final, module, absorption, evidence = emit_verified(
            subject, decide, strict=strict, finish=_finish(what, adding=budget is None)
        )
    else:
        subject, final, module = emit_settled(subject, decide, pin=True)
        final, absorption = _finish(what, adding=budget is None)(subject, final, module)
        evidence = None
    if verify and large:
        final = replace(final, notes=(*final.notes, f"more than {VERIFIED_PARAMETERS:,} parameters: numbers were not compared"))
    record = extended(model, subject.graph, subject.inputs, final, subject.entered, absorption)
    attach(module, replace(record, evidence=evidence))
    return cast("fx.GraphModule", module)


def absorption_of(slim: nn.Module) -> Absorption:
    """What absorption did for a slim module: the constants its readers took, what was lost, the largest difference left.

    Args:
        slim: what ``slim``, ``apply``, ``load`` or ``eliminate_dead_channels`` returned.

    Returns:
        An ``Absorption``; ``str`` of it is a report. Names and atoms are the original model's.

    Raises:
        PlanMismatchError: the module was not made by fxprune.
    """
    plan_of(slim)
    found = record_of(slim)
    assert found is not None
    return found.absorption


def verify(model: nn.Module, slim: nn.Module, inputs: Any = None) -> Evidence:
    """Prove a slim model equal to the masked original on concrete inputs.

    Raises:
        VerificationError: at the first node that differs.
    """
    decided = plan_of(slim)
    if not isinstance(slim, fx.GraphModule):
        return verified_eager(model, slim, decided, inputs)
    return verified(study(model, inputs, (), entered_by(slim)), slim, decided, absorption_of(slim))
