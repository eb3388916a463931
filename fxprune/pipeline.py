"""The stages composed, with their retries: what ``api.py`` offers, without arguments for people.

1. Capture is tried in a fixed order: symbolic tracing, proxies with concrete shapes (which enter hidden functions too, hidden.py),
   ``torch.export``, the eager module as it runs. The plan's notes say which of the last two was used, and what it costs.
2. ``settle`` probes networks with balances whose order is shuffled; what arrives in an order that no weights can mend is made uniform.
3. ``emit_settled`` emits a plan. A node that hides its literals in a function that tracing does not enter is entered and captured again; a
   node that cannot be made smaller at all has its channels pinned, with a note, and the plan is made anew.
4. ``verified`` proves the captured program equal to the eager model, and the slim one equal to the masked original.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.capture.concrete import ConcreteTracer
from fxprune.capture.eager import EagerCaptured, as_it_is
from fxprune.capture.hidden import Function, holding_widths, is_hidden
from fxprune.capture.inputs import Inputs, given, infer
from fxprune.capture.tracer import Captured, ChannelTracer, trace
from fxprune.errors import CaptureError, FxpruneError, InputError, KeepError, RewriteError
from fxprune.faithful import same_program
from fxprune.folds import Absorption
from fxprune.graph.channels import ChannelGraph, build
from fxprune.graph.selection import selected
from fxprune.plan import Plan
from fxprune.provenance.eager import EagerProgram
from fxprune.provenance.factor import Ids, Mask, Value
from fxprune.provenance.fallback import accepts, interpret_otherwise
from fxprune.provenance.interpret import Interpreted, interpret
from fxprune.record import ordered, sizes
from fxprune.rewrite.arrival import OrderConflictError
from fxprune.rewrite.eager import UnmetError, emit_eager
from fxprune.rewrite.emit import Emitted, emit
from fxprune.solve.plans import removed_by
from fxprune.verify import Evidence, verify_eager, verify_slim
from fxprune.weights import check_finite, check_weights, gammas, unchecked

ROUNDS = 64

Decide = Callable[[ChannelGraph], Plan]
Check = Callable[[Captured], None]


@dataclass(frozen=True)
class Subject:
    """A model under analysis: what was captured how, its graph and the inputs that were used."""

    model: nn.Module
    graph: ChannelGraph
    inputs: Inputs
    keep: tuple[str, ...] = ()
    entered: frozenset[Function] = field(default_factory=frozenset)
    weights: bool = True
    layout: str = "coupled"


def study(
    model: nn.Module,
    example_inputs: Any,
    keep: Sequence[str] = (),
    entered: frozenset[Function] = frozenset(),
    *,
    weights: bool = True,
    layout: str = "coupled",
    given_plan: bool = False,
) -> Subject:
    """Clauses 1 and 2. ``weights=False``: weights are not looked at, their numbers come from elsewhere. ``layout`` is a plan's, that may be given."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}.", got=type(model).__name__)
    if type(model).__name__ == "OptimizedModule" and isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise CaptureError(
            "this model was compiled by torch.compile, which hides its Python code. Hand over the module that was compiled "
            "(model._orig_mod), and compile the slim one.",
            got="OptimizedModule",
        )
    names: Any = keep
    if not isinstance(keep, str) and not (isinstance(names, Sequence) and all(isinstance(k, str) for k in keep)):
        raise KeepError(f"keep must be names (globs) of modules or parameters, got {keep!r}.", got=keep)
    patterns = (keep,) if isinstance(keep, str) else tuple(keep)
    program, inputs = _program(model, example_inputs, entered, check_weights if weights else unchecked)
    captured = program.captured
    graph = replace(build(program, captured.tensors, gammas(captured)), inputs=inputs)
    graph = settle(_keep(graph, patterns), inputs)
    graph = settle(selected(graph, required=not given_plan), inputs) if layout == "selection" else graph
    return Subject(model, graph, inputs, patterns, entered | captured.entered, weights, layout)


def _program(model: nn.Module, example_inputs: Any, entered: frozenset[Function], check: Check) -> tuple[Interpreted, Inputs]:
    if example_inputs is not None:
        inputs = given(example_inputs)
        return _captured(model, inputs, entered, check), inputs
    found: list[Interpreted] = []
    symbolic: list[Captured | CaptureError] = []

    def works(candidate: Inputs) -> Exception | None:
        try:
            found.append(_captured(model, candidate, entered, check, symbolic))
        except InputError as error:
            return error
        return None

    inputs = infer(model, works)
    return found[-1], inputs


def _captured(
    model: nn.Module,
    inputs: Inputs,
    entered: frozenset[Function],
    check: Check,
    symbolic: list[Captured | CaptureError] | None = None,
) -> Interpreted:
    """Clause 1. ``symbolic`` remembers the outcome of symbolic tracing, which does not depend on the inputs."""
    memory = [] if symbolic is None else symbolic
    if not memory and not entered:
        try:
            captured = trace(model, None, inputs)
            check(captured)
            memory.append(captured)
        except CaptureError as error:
            memory.append(error)
    first = memory[0] if memory else None
    if isinstance(first, Captured):
        hiding = frozenset() if isinstance(model, fx.GraphModule) else holding_widths(first.graph.nodes)
        if hiding:
            try:
                return interpret(_concrete(model, inputs, hiding), inputs)
            except CaptureError:
                pass  # what cannot be entered stays one call
        try:
            return interpret(first, inputs)
        except CaptureError as error:
            if isinstance(error, InputError) and not accepts(model, inputs):
                raise
            first = error if isinstance(error, InputError) else _located(error, model)
    if isinstance(model, (torch.jit.ScriptModule, fx.GraphModule)) and isinstance(first, CaptureError):
        raise first
    try:
        captured = _concrete(model, inputs, entered)
        check(captured)
        return interpret(captured, inputs)
    except CaptureError as error:
        if isinstance(error, InputError) and not accepts(model, inputs):
            raise
        said = f"{first} " if isinstance(first, CaptureError) else ""
        failed = CaptureError(f"{said}Tracing with concrete shapes failed: {error}", node=error.node, got=error.got)
        return interpret_otherwise(model, inputs, failed, check)


def _concrete(model: nn.Module, inputs: Inputs, entered: frozenset[Function]) -> Captured:
    """Tracing with concrete shapes. A branch that one sample takes because 1 == 1 is decided with two, if the program stays the model's."""
    tracers: list[ConcreteTracer] = []

    def traced(call: Inputs) -> Captured:
        def make(root: nn.Module) -> ConcreteTracer:
            tracers.append(ConcreteTracer(root, call, entered))
            return tracers[-1]

        return trace(model, make, call)

    captured = traced(inputs)
    two = inputs.doubled() if tracers[-1].of_one else None
    if two is not None:
        try:
            general = traced(two)
            same_program(model, general.module(), inputs)
            captured = general
        except FxpruneError:
            pass
    return replace(captured, entered=entered)


def _keep(graph: ChannelGraph, patterns: Sequence[str]) -> ChannelGraph:
    modules = [name for name, _ in graph.program.captured.modules]
    for pattern in patterns:
        hit = False
        for axis in graph.axes:
            owner, _, leaf = axis.name.rpartition(".")
            matched = fnmatch.fnmatchcase(axis.name, pattern)
            parents = [owner[: i if i >= 0 else None] for i in _prefixes(owner)]
            # A module's own channels are its output side; what it reads belongs to others.
            inner = any(fnmatch.fnmatchcase(parent, pattern) for parent in parents)
            if matched or inner:
                hit = True
                if matched or axis.dim == 0 or leaf in ("bias", "running_mean", "running_var"):
                    own = graph.closed.component[axis.start : axis.start + axis.size]
                    graph = graph.bar(np.unique(own), axis.name, f"kept by the user ({pattern!r})")
        if not hit and not any(fnmatch.fnmatchcase(name, pattern) for name in modules if name):
            known = [name for name in modules if name] + [axis.name for axis in graph.axes]
            tail = pattern.strip("*.").split(".")[-1]
            near = [name for name in modules if tail and tail in name][:3] or get_close_matches(pattern, known, 3)
            hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
            raise KeepError(f"keep={pattern!r} matches no module or parameter of the model.{hint}", got=pattern)
    return graph


def _prefixes(owner: str) -> list[int]:
    return [i for i, c in enumerate(owner) if c == "."] + [-1]


def _located(error: CaptureError, model: nn.Module) -> CaptureError:
    """The same error with the line of the model's source that made the node."""

    def recording(_root: nn.Module) -> ChannelTracer:
        tracer = ChannelTracer()
        tracer.record_stack_traces = True
        return tracer

    node = next((n for n in trace(model, recording).graph.nodes if n.name == error.node), None)
    lines = [line.strip() for line in (node.stack_trace or "").strip().splitlines()] if node is not None else []
    places = [(a, b) for a, b in pairwise(lines) if a.startswith("File") and "/fxprune/" not in a]
    if not places:
        return error
    place, text = places[-1]
    return CaptureError(f"{place}, {text!r}: {error}", node=error.node, target=error.target, got=error.got or text)


def settle(graph: ChannelGraph, inputs: Inputs) -> ChannelGraph:
    """Probe networks with balances: what arrives in an order that no weights can mend is made uniform, or pinned."""
    for _ in range(ROUNDS):
        if not graph.closed.cells or not graph.program.recorder.interleaved:
            return graph
        try:
            emit_any(graph, _probe(graph), inputs, weights=False)
        except OrderConflictError as conflict:
            settled = _yield_to(graph, conflict.components, conflict.node)
            if settled.closed is graph.closed and np.array_equal(settled.pinned, graph.pinned):
                return graph  # dealt with when a plan is emitted
            graph = settled
        except RewriteError:
            return graph  # a node that cannot be patched is dealt with when a plan is emitted (clause 3)
        else:
            return graph
    return graph


def _yield_to(graph: ChannelGraph, components: Ids, node: str) -> ChannelGraph:
    settled = graph.uniform(components)
    if settled.closed.uniform != graph.closed.uniform:
        return settled
    return graph.bar(components, node, "its channels arrive in an order that no choice of weights can mend")


def _probe(graph: ChannelGraph) -> Mask:
    """A plan that thins every set of cells by different channels in every cell."""
    removed = np.zeros(graph.closed.count, np.bool_)
    random = np.random.default_rng(0)
    for cells in graph.closed.cells:
        free = min(int((~graph.pinned[cell]).sum()) * cells.steps // len(cell) for cell in cells.cells)
        steps = min(max(1, cells.steps // 2), cells.steps - 1, free)
        for cell in cells.cells:
            candidates = random.permutation(cell[~graph.pinned[cell]])
            removed[candidates[: steps * (len(cell) // cells.steps)]] = True
    return removed


def emit_any(graph: ChannelGraph, removed: Mask, inputs: Inputs, decided: Plan | None = None, *, weights: bool = True) -> Emitted:
    """The slim program: a graph, or an eager module."""
    emitting = emit_eager if isinstance(graph.program, EagerProgram) else emit
    silent, kept = ({}, {}) if decided is None else (decided.silent, decided.kept)
    return emitting(graph, removed, inputs, silent, kept, weights=weights)


def emit_settled(subject: Subject, decide: Decide, *, pin: bool, weights: bool = True) -> tuple[Subject, Plan, nn.Module]:
    """Clause 3: the slim module of the plan that ``decide`` makes for a graph.

    ``pin=False``: the plan is given, so nothing may be pinned. ``weights=False``: the module's tensors stay on meta.

    Raises:
        RewriteError: what cannot be emitted, where pinning is not allowed or does not help.
    """
    for _ in range(ROUNDS):
        decided = decide(subject.graph)
        graph, removed = removed_by(subject.graph, decided, given=not pin)
        subject = replace(subject, graph=graph)
        try:
            emitted = emit_any(graph, removed, subject.inputs, decided, weights=weights)
        except UnmetError as unmet:
            if not pin:
                raise
            subject = _pinned(subject, unmet.components, unmet.node, str(unmet))
        except OrderConflictError as conflict:
            if not pin:
                raise
            settled = _yield_to(graph, conflict.components, conflict.node)
            stuck = settled.closed is graph.closed and np.array_equal(settled.pinned, graph.pinned)
            subject = _repaired(subject, conflict, pin=pin) if stuck else replace(subject, graph=settled)
        except RewriteError as error:
            subject = _repaired(subject, error, pin=pin)
        else:
            return subject, _final(graph, removed, decided, emitted), emitted.module
    raise RewriteError("the network did not settle; please report this model.")


def _repaired(subject: Subject, error: RewriteError, *, pin: bool) -> Subject:
    graph = subject.graph
    node = next((n for n in graph.program.captured.graph.nodes if n.name == error.node), None)
    if node is None:
        raise error
    if node.op == "call_function" and is_hidden(node.target) and node.target not in subject.entered:
        entered = subject.entered | {node.target}
        return study(subject.model, subject.inputs, subject.keep, entered, weights=subject.weights, layout=subject.layout)
    values = [graph.nodes[n.name] for n in (node, *node.all_input_nodes)]
    ids = [f.ravel() for v in torch.utils._pytree.tree_leaves(values) if isinstance(v, Value) for f in v.factors]
    touched = np.unique(graph.closed.component[np.concatenate([np.zeros(0, np.int64), *ids])])
    touched = touched[~graph.pinned[touched]]
    if not pin or not len(touched):
        raise error
    return _pinned(subject, touched, node.name, str(error))


def _pinned(subject: Subject, components: Ids, node: str, why: str) -> Subject:
    graph = subject.graph
    reason = f"node {node!r} cannot be made smaller"
    note = f"{len(components)} channels stay because {reason} ({why.splitlines()[0]})"
    return replace(subject, graph=replace(graph.bar(components, node, reason), notes=(*graph.notes, note)))


def _final(graph: ChannelGraph, removed: Mask, decided: Plan, emitted: Emitted) -> Plan:
    known = {axis.name for axis in graph.axes} == set(decided.kept)
    if known and not emitted.reordered:
        return decided
    return replace(decided, kept=ordered(graph, removed, emitted), sizes=sizes(graph))


def verified(subject: Subject, slim: nn.Module, decided: Plan, absorption: Absorption | None = None) -> Evidence:
    """Clause 4; ``absorption``: what was folded into the slim module.

    Raises:
        VerificationError: at the first node that differs.
    """
    captured, inputs = subject.graph.program.captured, subject.inputs
    for name, tensor in captured.tensors.items():
        if name in subject.graph.program.roots and tensor.is_floating_point():
            check_finite(name, tensor)
    if isinstance(captured, EagerCaptured):
        return verified_eager(subject.model, slim, decided, inputs)
    program = captured.module()
    if not isinstance(subject.model, fx.GraphModule):
        same_program(subject.model, program, inputs)
    assert isinstance(slim, fx.GraphModule)
    return verify_slim(program, slim, decided, inputs.args, dict(inputs.kwargs), absorption=absorption or Absorption())


def verified_eager(model: nn.Module, slim: nn.Module, decided: Plan, example_inputs: Any) -> Evidence:
    """Clause 4, for a slim module of the model's own class; inferred inputs are those on which the model runs.

    Raises:
        InputError: the model fails on these inputs, or none can be inferred.
        VerificationError: at the first call that differs.
    """

    def works(candidate: Inputs) -> Exception | None:
        return None if accepts(model, candidate) else InputError("the model fails on it")

    inputs = infer(model, works) if example_inputs is None else given(example_inputs)
    captured = as_it_is(model)
    same_program(model, captured.root, inputs)
    return verify_eager(captured.root, slim, decided, inputs.args, dict(inputs.kwargs))
