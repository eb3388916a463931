"""Which layout: the graph of each, and the faster of both at the same score.

1. At one ratio the layouts do not keep the same: the coupled one removes a channel with all its scale factors, small or not. So they are
   compared *at the same score*. Both plans are made for the ratio that was asked. The one that keeps more of the sum of all scale factors (of what
   the score says they are worth), nearly always that of the selection layout, gives way to that of the largest ratio, by bisection, that keeps as
   much as the other one. Neither removes less than was asked, and neither loses more. Scores that are not sums of anything (negative ones) are
   compared at the ratio.
2. Their work is counted from the graphs: multiply-adds, and bytes that are written, copies of selects included. If the selection layout saves
   neither, "coupled" is taken for the ratio that was asked: its program has no selects, and no clock is needed. So it is where nothing is to go, and
   where every batch norm has a producer of its own, so that both layouts are one.
3. Otherwise both are emitted, and run in turns on the example inputs, in evaluation mode and without gradients; a layout's time is the least of
   its calls, for what disturbs a measurement makes it longer. "selection" is taken if it is faster by more than ``MARGIN``.
4. A layout that cannot be had (no batch norms; a ratio that its constraints do not allow) loses to the other one, with the reason.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.capture.inputs import Inputs
from fxprune.errors import BudgetError, FxpruneWarning, RewriteError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.cost import Cost
from fxprune.graph.selection import selected
from fxprune.pipeline import emit_any, settle
from fxprune.plan import Plan
from fxprune.score.scores import Score
from fxprune.solve.arrange import copied
from fxprune.solve.plans import removed_channels
from fxprune.solve.selection import worth

LAYOUTS = ("coupled", "selection", "auto")
MARGIN = 0.05
LEAST_CALLS, MOST_CALLS, SECONDS = 7, 200, 1.0
STEPS, HIGHEST = 10, 0.99

Clock = Callable[[], float]
Make = Callable[[ChannelGraph, str, float | None], Plan]
Worth = Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]


@dataclass(frozen=True, slots=True)
class Choice:
    """The layout that was taken, its graph, the ratio it is solved for (clause 1), and the note that says why."""

    layout: str
    graph: ChannelGraph
    ratio: float | None
    note: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A layout with its graph, the ratio it is solved for, and that plan."""

    layout: str
    graph: ChannelGraph
    ratio: float | None
    plan: Plan

    def module(self) -> nn.Module:
        assert self.graph.inputs is not None
        return emit_any(self.graph, removed_channels(self.graph, self.plan), self.graph.inputs, self.plan).module


def in_layout(graph: ChannelGraph, layout: str) -> ChannelGraph:
    """The graph of a layout: for "selection", batch norms are cut from what they read (graph/selection.py).

    Raises:
        BudgetError: no batch norm to select after, or no program to put selects in.
    """
    if layout != "selection" or graph.selection is not None:
        return graph
    new = selected(graph)
    return new if new.inputs is None else settle(new, new.inputs)


def choose(
    graph: ChannelGraph,
    make: Make,
    ratio: float | None,
    score: Callable[[ChannelGraph], str | Score],
    clock: Clock = time.perf_counter,
) -> Choice:
    """Clauses 1 to 4.

    Args:
        graph: that of the coupled layout.
        make: the plan of a graph in a layout for a ratio.
        ratio: what was asked; None for a budget.
        score: the score of a graph.
        clock: seconds.

    Raises:
        BudgetError: neither layout can be had.
    """
    found: dict[str, _Candidate] = {}
    refused: Refused = {}
    for layout in ("coupled", "selection"):
        _had(layout, graph, make, ratio, found, refused)
    if not found:
        raise refused["coupled"]
    if refused:
        return _alone(next(iter(found.values())), refused)
    coupled, selection = _matched(found["coupled"], found["selection"], make, score)
    assert selection.graph.selection is not None
    if ratio == 0 or not selection.graph.selection.cuts or not _saves(coupled, selection):
        why = "the selection layout saves neither multiply-adds nor memory traffic"
        return Choice("coupled", coupled.graph, ratio, f"layout='auto' took 'coupled'{_at(coupled, selection)}: {why}")
    modules: dict[str, nn.Module] = {}
    for candidate in (coupled, selection):
        _emitted(candidate, modules, refused)
    if refused:
        return _alone(selection if "selection" in modules else coupled, refused)
    assert graph.inputs is not None
    times = interleaved(modules["coupled"], modules["selection"], graph.inputs, clock)
    taken = selection if times[1] < times[0] * (1 - MARGIN) else coupled
    said = f"{times[0] * 1e3:.3g} ms a call with 'coupled', {times[1] * 1e3:.3g} ms with 'selection'"
    how = "the least of interleaved calls on the example inputs"
    return Choice(
        taken.layout, taken.graph, taken.ratio, f"layout='auto' took {taken.layout!r}{_at(coupled, selection)}: {said} ({how})"
    )


def _alone(taken: _Candidate, refused: Mapping[str, Exception]) -> Choice:
    """Clause 4."""
    other = "selection" if taken.layout == "coupled" else "coupled"
    why = str(refused[other]).splitlines()[0]
    return Choice(taken.layout, taken.graph, taken.ratio, f"layout='auto' took {taken.layout!r}; {other!r} cannot be had: {why}")


def _at(coupled: _Candidate, selection: _Candidate) -> str:
    """Of which ratios the note speaks."""
    if coupled.ratio == selection.ratio:
        return ""
    return f" (at the same score 'coupled' removes {coupled.plan.achieved:.1%}, 'selection' {selection.plan.achieved:.1%})"


Refused = dict[str, BudgetError | RewriteError]


def _had(
    layout: str, graph: ChannelGraph, make: Make, ratio: float | None, found: dict[str, _Candidate], refused: Refused
) -> None:
    """The plan of a layout, or why it cannot be had."""
    try:
        found[layout] = _candidate(in_layout(graph, layout), layout, ratio, make)
    except (BudgetError, RewriteError) as error:
        refused[layout] = error


def _emitted(candidate: _Candidate, modules: dict[str, nn.Module], refused: Refused) -> None:
    """The module of a candidate, or why it cannot be had. Where neither can be emitted as it is, channels will be pinned."""
    try:
        modules[candidate.layout] = candidate.module()
    except RewriteError as error:
        refused[candidate.layout] = error


def _candidate(graph: ChannelGraph, layout: str, ratio: float | None, make: Make) -> _Candidate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FxpruneWarning)  # said when the plan is made for good
        return _Candidate(layout, graph, ratio, make(graph, layout, ratio))


# ---- the same score ----


def _matched(
    coupled: _Candidate, selection: _Candidate, make: Make, score: Callable[[ChannelGraph], str | Score]
) -> tuple[_Candidate, _Candidate]:
    """Clause 1."""
    if not coupled.ratio:
        return coupled, selection
    values = worth(selection.graph, score(selection.graph))
    if not all((own >= 0).all() and np.isfinite(own).all() for own in values.values()) or not any(
        o.any() for o in values.values()
    ):
        return coupled, selection
    first, second = _kept(coupled.plan, values), _kept(selection.plan, values)
    if second >= first:
        return coupled, _lowered(selection, first, values, make)
    return _lowered(coupled, second, values, make), selection


def _kept(plan: Plan, values: Worth) -> float:
    """What the scale factors that a plan keeps are worth."""
    return sum(float(own.sum() if name not in plan.kept else own[list(plan.kept[name][0])].sum()) for name, own in values.items())


def _lowered(candidate: _Candidate, target: float, values: Worth, make: Make) -> _Candidate:
    """The plan of the largest ratio that keeps at least ``target``."""
    assert candidate.ratio is not None
    best, low, high = candidate, candidate.ratio, HIGHEST
    for _ in range(STEPS):
        ratio = (low + high) / 2
        try:
            tried = _candidate(candidate.graph, candidate.layout, ratio, make)
        except BudgetError:
            high = ratio
            continue
        if _kept(tried.plan, values) >= target * (1 - 1e-12):
            best, low = tried, ratio
        else:
            high = ratio
    return best


# ---- work and time ----


def _saves(coupled: _Candidate, selection: _Candidate) -> bool:
    """Clause 2. Where work cannot be counted, the clock decides."""
    try:
        first, second = _work(coupled), _work(selection)
    except BudgetError:
        return True
    return second[0] < first[0] or second[1] < first[1]


def _work(candidate: _Candidate) -> tuple[int, int]:
    """Multiply-adds of a call, and bytes it writes."""
    removed = removed_channels(candidate.graph, candidate.plan)
    cost = Cost(candidate.graph)
    macs, written = (cost.of(kind).at(~removed) for kind in ("macs", "activation_bytes"))
    return macs, written + copied(candidate.graph, removed, candidate.plan.kept)


def interleaved(first: nn.Module, second: nn.Module, inputs: Inputs, clock: Clock) -> tuple[float, float]:
    """Seconds of one call of each of two modules (clause 3). Their modes and random numbers stay as they were."""
    device = next(
        (x.device for x in torch.utils._pytree.tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(x, Tensor)), None
    )
    modes = [(m, m.training) for module in (first, second) for m in module.modules()]
    least = [float("inf"), float("inf")]
    try:
        first.eval()
        second.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            began = clock()
            for call in range(MOST_CALLS):
                for place, module in enumerate((first, second)):
                    seconds = _call(module, inputs, device, clock)
                    least[place] = min(least[place], seconds) if call else least[place]  # the first call warms up
                if call >= LEAST_CALLS and clock() - began > SECONDS:
                    break
    finally:
        for module, mode in modes:
            module.training = mode
    return least[0], least[1]


def _call(module: nn.Module, inputs: Inputs, device: torch.device | None, clock: Clock) -> float:
    given: Any = inputs.map(torch.clone)
    _finished(device)
    start = clock()
    module(*given.args, **given.kwargs)
    _finished(device)
    return clock() - start


def _finished(device: torch.device | None) -> None:
    """Wait until an accelerator has done what it was told."""
    if device is not None and device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
