"""Latency budgets, end to end: what ``plan`` and ``slim`` do with ``Budget(latency=...)``.

1. A budget without a table gets one: the layers of the model are measured over widths on the example inputs (fxprune/latency), as the slim module
   will be returned, not deployed; with nothing kept back, whatever ``keep`` says, so that a table on disk serves every call.
2. Widths are rounded to the table's alignment, unless the user says to what. Where no such plan meets the budget, to half of that, and so on.
3. ``slim`` times what it makes, in turns with the original, on the example inputs, and corrects its plan until the clock agrees
   (solve/measured.py). A table made by ``fxprune.latency.measure`` for the deployed form has both deployed in that form before they are timed.
4. A table of another machine, number of threads or input shape, or one that somebody else has written, cannot be held against a clock here: the
   budget is then met by its prediction, which the plan's notes say.
5. A garbage collector that sleeps while a model is compiled is woken: dozens of slim models come and go.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from fxprune.capture.inputs import Inputs
from fxprune.errors import BudgetError, CaptureError, FxpruneWarning, RewriteError
from fxprune.failsafe import Finish
from fxprune.graph.channels import ChannelGraph, build
from fxprune.inference.deploy import GIVEN, deploy
from fxprune.pipeline import Decide, Subject, emit_any, settle
from fxprune.plan import Plan
from fxprune.progress import steps
from fxprune.provenance.eager import EagerProgram, private
from fxprune.provenance.interpret import evaluation_clone
from fxprune.score.data import DataScore
from fxprune.score.scores import Score
from fxprune.solve.budget import Budget
from fxprune.solve.measured import ROUNDS, Reading, meet_latency
from fxprune.solve.plans import removed_channels
from fxprune.timing import interleaved, typical
from fxprune.weights import gammas

if TYPE_CHECKING:
    from fxprune.latency.table import LatencyTable

SECONDS, CALLS = 1.0, 100  # at most, of each of a slim model and the original, per round
Found = TypeVar("Found")


class Once:
    """A data-driven score that looks at the same graph once, however many plans are made. Graphs with other pins are others."""

    def __init__(self, score: DataScore) -> None:
        self._score = score
        self._seen: dict[tuple[int, int], tuple[ChannelGraph, Score]] = {}  # ids are good while the graph is held

    def on(self, graph: ChannelGraph) -> Score:
        """The score of one graph's groups."""
        key = (id(graph.closed), id(graph.barred))
        if key not in self._seen:
            self._seen[key] = graph, self._score.on(graph)
        return self._seen[key][1]


def lacks_table(budget: Any) -> bool:
    """Whether a budget bounds a latency and has no measurements."""
    return isinstance(budget, Budget) and budget.latency is not None and budget.table is None


def with_table(graph: ChannelGraph, budget: Budget) -> Budget:
    """The budget with measurements (clause 1).

    Raises:
        BudgetError: a model whose layers cannot be timed one by one.
    """
    inputs = graph.inputs
    if inputs is None or isinstance(graph.program, EagerProgram):
        why = (
            "it runs as an eager module, which has no nodes to time"
            if inputs is not None
            else "there are no example inputs to time it on"
        )
        raise BudgetError(
            f"a latency budget needs measurements of this model on this machine, and its layers cannot be timed: {why}. "
            "Give Budget(latency=..., table=...), or bound macs= or params=.",
            got="latency",
        )
    from fxprune.latency.table import measure_subject  # it keeps what it measures in files, and rooms above this one write those

    captured = graph.program.captured
    whole = replace(build(graph.program, captured.tensors, gammas(captured)), inputs=inputs)
    with collecting():
        try:
            table = measure_subject(Subject(captured.module(), settle(whole, inputs), inputs), deployed=False)
        except CaptureError as error:
            raise BudgetError(
                f"{error} Give Budget(latency=..., table=...), or bound macs= or params=.", got="latency"
            ) from error
    return replace(budget, table=table)


def rounded(budget: Any, round_to: int | None, solve: Callable[[int], Found]) -> tuple[Found, tuple[str, ...]]:
    """What ``solve`` gives for the widest rounding that meets the budget (clause 2), and a note where that was learnt.

    Raises:
        BudgetError: none does.
    """
    table = budget.table if isinstance(budget, Budget) and budget.latency is not None else None
    learnt = int(getattr(table, "alignment", 1)) if round_to is None else 1
    return _from(learnt, solve) if learnt > 1 else (solve(1 if round_to is None else round_to), ())


def _from(step: int, solve: Callable[[int], Found]) -> tuple[Found, tuple[str, ...]]:
    """Clause 2, from a rounding down."""
    if step <= 1:
        return solve(1), ()
    try:
        found = solve(step)
    except BudgetError:
        return _from(step // 2, solve)
    return found, (f"widths are multiples of {step}, which are cheap here by the measurements (round_to= says otherwise)",)


def meeting(
    subject: Subject, budget: Any, planning: Callable[[ChannelGraph], Callable[[Budget], Plan]], finish: Finish
) -> Decide | None:
    """Plans whose models meet the latency budget by the clock (clause 3); None where no clock can tell.

    Args:
        subject: what is made smaller.
        budget: with a table.
        planning: for a graph, the plan for a budget, by prediction.
        finish: what is done to a slim module before it is returned.
    """
    if not isinstance(budget, Budget) or budget.latency is None:
        return None
    from fxprune.latency.table import LatencyTable

    table = budget.table
    if not isinstance(table, LatencyTable) or isinstance(subject.graph.program, EagerProgram) or not _here(table, subject):
        said = "latency: predicted by the table that was given, not timed here"
        return lambda graph: _noted(planning(graph)(budget), said)
    timer = _Timer(subject, table.form)

    def decide(graph: ChannelGraph) -> Plan:
        planned = planning(graph)
        tried: list[Plan] = []
        heard = _Heard()
        with collecting(), steps("timing plans", ROUNDS) as step:

            def make(plan: Plan) -> nn.Module:
                tried.append(plan)
                module = emit_any(graph, removed_channels(graph, plan), subject.inputs, plan).module
                finish(replace(subject, graph=graph), plan, module)
                return module

            def clock(module: nn.Module) -> Reading:
                reading = timer(module)
                step("")
                return reading

            try:
                taken = meet_latency(budget, lambda asked: heard(lambda: planned(asked)), make, clock).plan
            except RewriteError:
                taken = tried[-1]  # it will fail again where something is done about it, and another plan be asked for
        heard.say(taken)
        return taken

    return decide


class _Heard:
    """Keeps what is said about each plan, and says it of the one that is taken."""

    def __init__(self) -> None:
        self.messages: dict[int, tuple[Plan, list[warnings.WarningMessage]]] = {}

    def __call__(self, make: Callable[[], Plan]) -> Plan:
        with warnings.catch_warnings(record=True) as messages:
            warnings.simplefilter("always", FxpruneWarning)
            plan = make()
        self.messages[id(plan.kept)] = plan, messages
        return plan

    def say(self, plan: Plan) -> None:
        _, messages = self.messages.get(id(plan.kept), (plan, []))
        for message in messages:
            warnings.warn_explicit(message.message, message.category, message.filename, message.lineno)


def _noted(plan: Plan, note: str) -> Plan:
    return replace(plan, notes=(*plan.notes, note))


def _here(table: LatencyTable, subject: Subject) -> bool:
    """Whether a table was measured on this machine, as it is set now, on inputs like these (clause 4)."""
    from fxprune.latency.cache import machine_state

    module = subject.graph.program.captured.module()
    state = machine_state(_device(module), module, subject.inputs, deployed=table.form != GIVEN)
    return all(table.machine.get(key) == state[key] for key in ("device", "threads", "dtype", "inputs"))


class _Timer:
    """Times slim models in turns with the original, in one form of deployment."""

    def __init__(self, subject: Subject, form: str) -> None:
        self.form, self.inputs = form, subject.inputs
        self.device = _device(subject.model)
        model = evaluation_clone(subject.model, private)
        self.original = self._call(model)

    def __call__(self, module: nn.Module) -> Reading:
        calls = [self.original, self._call(module.eval())]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            original, seconds = (typical(own) for own in interleaved(calls, self.device, 2 * SECONDS, CALLS))
        return Reading(seconds, original)

    def _call(self, module: nn.Module) -> Callable[[], object]:
        made = module if self.form == GIVEN else deploy(module, self.inputs, form=self.form)
        inputs: Inputs = self.inputs.map(torch.clone)
        return partial(made, *inputs.args, **inputs.kwargs)


def _device(module: nn.Module) -> torch.device:
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


@contextmanager
def collecting() -> Iterator[None]:
    """Clause 5."""
    was = gc.isenabled()
    gc.enable()
    try:
        yield
    finally:
        if not was:
            gc.disable()
