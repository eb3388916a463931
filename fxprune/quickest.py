"""Of several plans for one budget, the one whose network is the fastest where it will run.

A budget of MACs or parameters leaves open where they go: many networks have as many MACs and keep a similar score. Some have wide layers beside
thin ones, which a runtime serves badly. Which serves best depends on the runtime (eager PyTorch, ONNX Runtime, a compiler) and on the machine.

1. *Candidates* meet the same budget by the same score: every scope (``SCOPES``) with widths of every multiple in ``round_to``; and of the first two
   scopes the *lean* plan, that of the fewest bytes of activations that still uses ``USED`` of the budget, found by bisection.
2. What candidates *keep* is measured by one score, that of the first of them (``plan`` takes another one for a threshold where none is given).
   A candidate that cannot be had, as a plan or as a network, is left out; so is one that keeps less than ``least`` of what the best one keeps.
3. ``run`` makes a call of each slim network, in evaluation mode: of its deployed form, unless told something else, such as a session of another
   runtime. Calls are timed in turns (timing.py). The fastest wins that can be verified; what ``slim`` finds too large to verify is not.
4. No slim network is held here while calls are timed: what calls hold is all the memory that candidates take. The fastest is made again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import fx, nn

from fxprune.api import VERIFIED_PARAMETERS, analyze, apply, plan
from fxprune.capture.inputs import given
from fxprune.errors import BudgetError, FxpruneError, FxpruneWarning, InputError
from fxprune.graph.channels import ChannelGraph
from fxprune.inference.deploy import deploy
from fxprune.plan import Plan
from fxprune.score.data import DataScore, on
from fxprune.score.scores import Score
from fxprune.score.scores import score as score_groups
from fxprune.solve.budget import Budget
from fxprune.solve.plans import removed_channels
from fxprune.solve.ratio import check_options
from fxprune.solve.slots import score_values
from fxprune.timing import interleaved, typical

SCOPES = ("global", "isomorphic", "uniform", "threshold", "below")
LEAN = SCOPES[:2]
USED, HALVINGS = 0.97, 6

Run = Callable[[nn.Module], Callable[[], object]]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Candidate:
    """A plan, what it is called, the share of the score that it keeps, and the seconds that a call took."""

    name: str
    plan: Plan
    kept: float
    seconds: float


@dataclass(frozen=True)
class Quickest:
    """The fastest network.

    Attributes:
        model: the slim module, as ``apply`` made it.
        candidates: everything that was timed, the fastest first.
        absent: name and reason of what was left out.
    """

    model: fx.GraphModule
    candidates: tuple[Candidate, ...]
    absent: dict[str, str]

    def __str__(self) -> str:
        best = max(one.kept for one in self.candidates)
        lines = [
            f"{1e3 * one.seconds:9.3f} ms  keeps {one.kept / best:6.1%} of the best score  {one.name}" for one in self.candidates
        ]
        return "\n".join(lines + [f"{name}: {why}" for name, why in self.absent.items()])


def quickest(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget,
    *,
    run: Run | None = None,
    score: str | Score | DataScore = "auto",
    round_to: int | Sequence[int] = (16, 32),
    floor: float = 0.1,
    keep: Sequence[str] = (),
    least: float = 0.0,
    seconds: float = 1.0,
    verify: bool = True,
) -> Quickest:
    """Clauses 1 to 3.

    Args:
        model: see ``slim``.
        score: see ``slim``.
        floor: see ``slim``.
        keep: see ``slim``.
        verify: see ``slim``; of the fastest alone.
        example_inputs: what calls are timed with.
        budget: what all candidates meet; without a latency, for that is what is sought.
        run: makes a call of a slim network; None: that of its deployed form.
        round_to: multiples that widths are rounded to.
        least: share of the score that the best candidate keeps, which the others have to keep as well.
        seconds: time that calls of each candidate get.

    Raises:
        BudgetError: no candidate can be had, or a multiple is no positive whole number.
        InputError: there is no budget, or it bounds the latency.
        VerificationError: no candidate can be verified.
    """
    given_budget: Any = budget
    if not isinstance(given_budget, Budget) or budget.latency is not None:
        raise InputError(f"quickest takes a Budget without a latency, got {budget!r}.", expected="Budget(macs=0.5)", got=budget)
    multiples = tuple(dict.fromkeys((round_to,) if isinstance(round_to, int) else round_to))
    if not multiples:
        raise BudgetError(
            "round_to must name at least one multiple, such as (16, 32); 1 leaves widths as they fall.", got=round_to
        )
    for multiple in multiples:
        check_options(floor, multiple)
    graph = analyze(model, example_inputs, keep=keep)
    seen = on(score, graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FxpruneWarning)  # of candidates that are not taken, too
        plans, absent = _candidates(partial(plan, graph, score=seen, floor=floor), budget, multiples)
        made = partial(_slim, model, example_inputs)
        plans = _feasible(plans, absent, made)
    if not plans:
        raise BudgetError(
            f"no plan meets {budget!r}: {'; '.join(f'{name}: {why}' for name, why in absent.items())}.", got=repr(budget)
        )
    kept = _kept(graph, plans, seen)
    best = max(kept.values())
    poor = {name: f"keeps {own / best:.1%} of the best score" for name, own in kept.items() if own < least * best}
    absent |= poor
    plans = {name: own for name, own in plans.items() if name not in poor}
    call = partial(_deployed, example_inputs=example_inputs) if run is None else run
    with torch.no_grad():
        calls = [call(made(own).eval()) for own in plans.values()]
        times = interleaved(calls, _device(graph), seconds * len(calls))
    timed = sorted(zip(map(typical, times), plans, strict=True))
    candidates = tuple(Candidate(name, plans[name], kept[name], taken) for taken, name in timed)
    if not verify or sum(p.numel() for p in model.parameters()) > VERIFIED_PARAMETERS:
        return Quickest(made(candidates[0].plan), candidates, absent)
    for place, one in enumerate(candidates):
        found = _tried(partial(apply, model, one.plan, example_inputs))
        if not isinstance(found, FxpruneError):
            return Quickest(found, candidates[place:], absent)
        absent[one.name] = _reason(found)
        failure = found
    raise failure


def _slim(model: nn.Module, example_inputs: Any, own: Plan) -> fx.GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FxpruneWarning)
        return apply(model, own, example_inputs, verify=False)


def _feasible(plans: dict[str, Plan], absent: dict[str, str], make: Callable[[Plan], fx.GraphModule]) -> dict[str, Plan]:
    """The plans that there is a network of; a reason for each of the others (clause 2)."""
    reasons = {name: _reason(made) for name, own in plans.items() if isinstance(made := _tried(partial(make, own)), FxpruneError)}
    absent |= reasons
    return {name: own for name, own in plans.items() if name not in reasons}


def _tried(make: Callable[[], Made]) -> Made | FxpruneError:
    try:
        return make()
    except FxpruneError as error:
        return error


def _reason(error: FxpruneError) -> str:
    return str(error).splitlines()[0]


def _kept(graph: ChannelGraph, plans: dict[str, Plan], score: str | Score) -> dict[str, float]:
    """What every plan keeps of the whole score (clause 2)."""
    first = next(iter(plans.values()))
    scored = score_groups(graph.groups, first.score if isinstance(score, str) else score)
    values = score_values(graph, scored)
    total = float(values.sum())
    return {name: 1 - float(values[removed_channels(graph, own)].sum()) / total if total else 1.0 for name, own in plans.items()}


def _candidates(planned: Callable[..., Plan], budget: Budget, rounds: Sequence[int]) -> tuple[dict[str, Plan], dict[str, str]]:
    """Clause 1, and why there are no others."""
    found: dict[str, Plan] = {}
    absent: dict[str, str] = {}
    for name, make in _makers(planned, budget, rounds):
        own = _tried(make)
        if isinstance(own, FxpruneError):
            absent[name] = _reason(own)
            continue
        twin = next((other for other, known in found.items() if known.kept == own.kept), None)
        if twin is None:
            found[name] = own
        else:
            absent[name] = f"the same as {twin}"
    return found, absent


def _makers(planned: Callable[..., Plan], budget: Budget, rounds: Sequence[int]) -> Iterator[tuple[str, Callable[[], Plan]]]:
    for multiple in rounds:
        for scope in SCOPES:
            yield f"{scope}, multiples of {multiple}", partial(planned, budget=budget, scope=scope, round_to=multiple)
    for scope in LEAN if budget.activation_bytes is None else ():
        own = partial(planned, scope=scope, round_to=rounds[0])
        yield f"{scope}, lean, multiples of {rounds[0]}", partial(_lean, own, budget)


def _lean(planned: Callable[..., Plan], budget: Budget) -> Plan:
    """The plan of the fewest bytes of activations (clause 1)."""
    best = planned(budget=budget)
    enough = USED * _used(best)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        try:
            own = planned(budget=replace(budget, activation_bytes=middle))
        except BudgetError:
            low = middle
            continue
        if _used(own) >= enough:
            best, high = own, middle
        else:
            low = middle
    return best


def _used(plan: Plan) -> float:
    """How far a plan uses its bounds, bytes of activations left out: the largest share of one."""
    bounds = {
        name: figure
        for name, figure in plan.figures.items()
        if name not in ("activation_bytes", "kept score") and "asked" in figure
    }
    return max((figure["achieved"] / figure["asked"] for figure in bounds.values()), default=0.0)


def _deployed(slim: nn.Module, example_inputs: Any) -> Callable[[], object]:
    inputs = given(example_inputs)
    return partial(deploy(slim, example_inputs), *inputs.args, **inputs.kwargs)


def _device(graph: ChannelGraph) -> torch.device:
    return next((t.device for t in graph.tensors.values()), torch.device("cpu"))
