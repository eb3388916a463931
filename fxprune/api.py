"""The public entry points: the pipeline's stages, composed.

``slim`` = capture, analyze, score, solve, rewrite, verify. The input model is never changed; a call either returns a verified
smaller ``GraphModule`` or raises.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from torch import fx, nn

from fxprune.errors import BudgetError, PlanMismatchError
from fxprune.failsafe import emit_verified
from fxprune.graph.channels import ChannelGraph
from fxprune.layouts import LAYOUTS, choose, in_layout
from fxprune.pipeline import emit_settled, study, verified, verified_eager
from fxprune.plan import Plan
from fxprune.record import attach, entered_by, extended, record_of
from fxprune.score.scores import Score
from fxprune.score.scores import score as score_groups
from fxprune.solve.plans import to_plan
from fxprune.solve.ratio import solve_ratio
from fxprune.solve.selection import ranked, select_channels
from fxprune.train.readiness import warn_if_large
from fxprune.verify import Evidence

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
    score: str | Score = "auto",
    layout: str = "coupled",
    floor: float = 0.1,
    round_to: int = 1,
) -> Plan:
    """Decide which channels go.

    Args:
        graph: what ``analyze`` returned.
        ratio: share of channels to remove, in [0, 1).
        budget: not available in this version.
        layout: "coupled": a channel goes when its whole coupling class goes. "selection": every batch norm drops its own channels, behind a
            select where others need them (docs/selection.md). "auto": both are made, and timed on the example inputs; the faster one is it.
        score: "auto", "gamma", "gamma_sum", "gamma_max", "magnitude", "random", or a callable ``(ChannelGroup) -> tensor (channels,)``.
        floor: share of each group that stays, at least one channel; 0 allows emptied layers.
        round_to: widths of groups become multiples of this.

    Raises:
        BudgetError: a ratio that makes no sense or cannot be reached.
        NothingToPruneError: no channel can go.
    """
    if budget is not None:
        raise BudgetError("budget= is not available in this version; use ratio=.", got=budget)
    if layout not in LAYOUTS:
        raise BudgetError(f"layout must be 'coupled', 'selection' or 'auto', got {layout!r}.", expected="coupled", got=layout)
    if ratio is None:
        raise BudgetError("ratio is missing: the share of channels to remove, in [0, 1).", expected="[0, 1)", got=ratio)
    if layout == "auto":
        chosen = choose(graph, lambda layout: plan(graph, ratio, score=score, layout=layout, floor=floor, round_to=round_to))
        made = plan(graph, ratio, score=score, layout=chosen.layout, floor=floor, round_to=round_to)
        return replace(made, notes=(*made.notes, chosen.note))
    graph = in_layout(graph, layout)
    if layout == "selection":
        scored, solution = select_channels(graph, ratio, score, floor, round_to)
    else:
        scored = score_groups(graph.groups, score)
        solution = solve_ratio(graph, scored, ratio, floor, round_to)
    groups = ranked(graph).groups if layout == "selection" else graph.groups
    warn_if_large(groups, scored.name, solution.removed, ratio, scored.values)
    return to_plan(graph, solution, scored.name, layout)


@_undisturbed()
def apply(
    model: nn.Module, plan: Plan, example_inputs: Any = None, *, absorb: bool = True, verify: bool = True
) -> fx.GraphModule:
    """The slim model that a plan describes, for a fresh or trained instance of the same architecture.

    Raises:
        PlanMismatchError: the plan belongs to another model.
        VerificationError: the slim model does not compute what the masked original computes.
    """
    del absorb  # in this version what a removed channel still emits is dropped, as the paper does
    if not isinstance(plan, Plan):
        raise PlanMismatchError(
            f"plan must be a fxprune.Plan, got {type(plan).__name__}. Use Plan.from_json() for a JSON text.",
            got=type(plan).__name__,
        )
    subject = study(model, example_inputs, layout=plan.layout)
    subject, final, module = emit_settled(subject, lambda _: plan, pin=False)
    attach(module, extended(model, subject.graph, subject.inputs, final, subject.entered))
    if verify:
        verified(subject, module, final)
    return cast("fx.GraphModule", module)


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
    score: str | Score = "auto",
    layout: str = "coupled",
    floor: float = 0.1,
    round_to: int = 1,
    keep: Sequence[str] = (),
    absorb: bool = True,
    verify: bool = True,
    strict: bool = False,
) -> fx.GraphModule:
    """A physically smaller, verified version of ``model``.

    Args: see ``analyze`` (model, example_inputs, keep), ``plan`` (ratio, score, layout, floor, round_to) and ``apply`` (verify).
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
    del absorb  # in this version what a removed channel still emits is dropped, as the paper does
    subject = study(model, example_inputs, keep, layout="selection" if layout == "selection" else "coupled")
    if layout == "auto":
        chosen = choose(
            subject.graph,
            lambda layout: plan(subject.graph, ratio, budget=budget, score=score, layout=layout, floor=floor, round_to=round_to),
        )
        layout = chosen.layout
        graph = in_layout(subject.graph, layout)
        subject = replace(subject, layout=layout, graph=replace(graph, notes=(*graph.notes, chosen.note)))

    def decide(graph: ChannelGraph) -> Plan:
        return plan(graph, ratio, budget=budget, score=score, layout=layout, floor=floor, round_to=round_to)

    large = sum(t.numel() for t in subject.graph.tensors.values() if isinstance(t, nn.Parameter)) > VERIFIED_PARAMETERS
    if verify and not large:
        subject, final, module = emit_verified(subject, decide, strict=strict)
    else:
        subject, final, module = emit_settled(subject, decide, pin=True)
    if verify and large:
        final = replace(final, notes=(*final.notes, f"more than {VERIFIED_PARAMETERS:,} parameters: numbers were not compared"))
    attach(module, extended(model, subject.graph, subject.inputs, final, subject.entered))
    return cast("fx.GraphModule", module)


def verify(model: nn.Module, slim: nn.Module, inputs: Any = None) -> Evidence:
    """Prove a slim model equal to the masked original on concrete inputs.

    Raises:
        VerificationError: at the first node that differs.
    """
    decided = plan_of(slim)
    if not isinstance(slim, fx.GraphModule):
        return verified_eager(model, slim, decided, inputs)
    return verified(study(model, inputs, (), entered_by(slim)), slim, decided)
