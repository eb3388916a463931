"""The public entry points: the pipeline's stages, composed.

``slim`` = capture, analyze, score, solve, rewrite, verify. The input model is never changed; a call either returns a verified
smaller ``GraphModule`` or raises.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from fxprune.capture.inputs import Inputs, given, infer
from fxprune.capture.tracer import Captured, trace
from fxprune.errors import BudgetError, FxpruneError, InputError, KeepError, PlanMismatchError, WeightError
from fxprune.graph.channels import ChannelGraph, build
from fxprune.plan import Plan
from fxprune.provenance.factor import Ids, Mask
from fxprune.provenance.interpret import interpret
from fxprune.rewrite.arrival import OrderConflictError
from fxprune.rewrite.emit import Emitted, emit
from fxprune.score.scores import Score
from fxprune.score.scores import score as score_groups
from fxprune.solve.plans import removed_channels, to_plan
from fxprune.solve.ratio import solve_ratio
from fxprune.verify import Evidence, verify_slim

RECORD = "fxprune"
ROUNDS = 32


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
    return _analyze(model, example_inputs, keep)[0]


def _analyze(model: nn.Module, example_inputs: Any, keep: Sequence[str] = ()) -> tuple[ChannelGraph, Inputs]:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}.", got=type(model).__name__)
    captured = trace(model)
    _check_weights(captured)
    if example_inputs is not None:
        inputs = given(example_inputs)
        program = interpret(captured, inputs)
    else:
        found: list[Any] = []

        def works(candidate: Inputs) -> Exception | None:
            try:
                found.append(interpret(captured, candidate))
            except InputError as error:
                return error
            return None

        inputs = infer(model, works)
        program = found[-1]
    graph = build(program, captured.tensors, _gammas(captured))
    graph = _settle(_keep(graph, keep), inputs)
    return graph, inputs


def _check_weights(captured: Captured) -> None:
    for name, tensor in captured.tensors.items():
        if not isinstance(tensor, nn.Parameter):
            continue
        if tensor.device.type == "meta":
            raise WeightError(
                f"parameter {name!r} is on the meta device: it has no numbers to rank or copy. Load the weights first.", node=name
            )
        if tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex()):
            raise WeightError(
                f"parameter {name!r} has dtype {tensor.dtype}; only floating-point weights can be pruned. Prune before quantising.",
                node=name,
                got=tensor.dtype,
            )
    for name, module in captured.modules:
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise WeightError(
                f"module {name!r} is quantised ({type(module).__name__}). Prune the float model, then quantise.", node=name
            )


def _gammas(captured: Captured) -> frozenset[str]:
    """Names of the weights of batch norms (subclasses and frozen ones included)."""
    names = set()
    for name, module in captured.modules:
        kind = isinstance(module, nn.modules.batchnorm._NormBase) or type(module).__name__ == "FrozenBatchNorm2d"
        if kind and isinstance(getattr(module, "weight", None), Tensor):
            names.add(f"{name}.weight" if name else "weight")
    return frozenset(names)


def _keep(graph: ChannelGraph, keep: Sequence[str]) -> ChannelGraph:
    patterns = (keep,) if isinstance(keep, str) else tuple(keep)
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
            close = [name for name in modules if pattern.strip("*.").split(".")[-1] in name][:3]
            hint = f" Did you mean {', '.join(map(repr, close))}?" if close and pattern.strip("*.") else ""
            raise KeepError(f"keep={pattern!r} matches no module or parameter of the model.{hint}", got=pattern)
    return graph


def _prefixes(owner: str) -> list[int]:
    return [i for i, c in enumerate(owner) if c == "."] + [-1]


def _settle(graph: ChannelGraph, inputs: Inputs) -> ChannelGraph:
    """Probe networks with balances: what arrives in an order that no weights can mend is made uniform, or pinned."""
    for _ in range(ROUNDS):
        if not graph.closed.cells:
            return graph
        try:
            emit(graph, _probe(graph), inputs, weights=False)
        except OrderConflictError as conflict:
            graph = _yield_to(graph, conflict.components, conflict.node)
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
        layout: "coupled": a channel goes when its whole coupling class goes.
        score: "auto", "gamma", "gamma_sum", "gamma_max", "magnitude", "random", or a callable ``(ChannelGroup) -> tensor (channels,)``.
        floor: share of each group that stays, at least one channel; 0 allows emptied layers.
        round_to: widths of groups become multiples of this.

    Raises:
        BudgetError: a ratio that makes no sense or cannot be reached.
        NothingToPruneError: no channel can go.
    """
    if budget is not None:
        raise BudgetError("budget= is not available in this version; use ratio=.", got=budget)
    if layout != "coupled":
        raise BudgetError(f"layout must be 'coupled' in this version, got {layout!r}.", expected="coupled", got=layout)
    if ratio is None:
        raise BudgetError("ratio is missing: the share of channels to remove, in [0, 1).", expected="[0, 1)", got=ratio)
    scored = score_groups(graph.groups, score)
    solution = solve_ratio(graph, scored, ratio, floor, round_to)
    return to_plan(graph, solution, scored.name, layout)


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
        raise PlanMismatchError(f"plan must be a fxprune.Plan, got {type(plan).__name__}. Use Plan.from_json() for a JSON text.")
    graph, inputs = _analyze(model, example_inputs)
    return _apply(model, graph, plan, inputs, verify=verify)


def _apply(model: nn.Module, graph: ChannelGraph, decided: Plan, inputs: Inputs, *, verify: bool) -> fx.GraphModule:
    removed = removed_channels(graph, decided)
    emitted = emit(graph, removed, inputs, decided.silent)
    known = {axis.name for axis in graph.axes} == set(decided.kept)
    final = (
        decided
        if known and not emitted.reordered
        else replace(decided, kept=_ordered(graph, removed, emitted), sizes=_sizes(graph))
    )
    before = _record(model)
    total = final if before is None else compose(before, final)
    _attach(emitted.module, total)
    if verify:
        _verify(graph, emitted.module, final, inputs)
    return emitted.module


def _ordered(graph: ChannelGraph, removed: Mask, emitted: Emitted) -> dict[str, dict[int, tuple[int, ...]]]:
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for axis, order in emitted.order.items():
        alive = ~removed[graph.closed.component[axis.start + order]]
        kept.setdefault(axis.name, {})[axis.dim] = tuple(order[alive].tolist())
    return kept


def _sizes(graph: ChannelGraph) -> dict[str, dict[int, int]]:
    sizes: dict[str, dict[int, int]] = {}
    for axis in graph.axes:
        sizes.setdefault(axis.name, {})[axis.dim] = axis.size
    return sizes


def _attach(slim: fx.GraphModule, record: Plan) -> None:
    slim.meta[RECORD] = record
    slim._fxprune_plan = record  # type: ignore[assignment]


def _record(model: nn.Module) -> Plan | None:
    if not isinstance(model, fx.GraphModule):
        return None
    found = model.meta.get(RECORD) or model.__dict__.get("_fxprune_plan")
    return found if isinstance(found, Plan) else None


def compose(first: Plan, second: Plan) -> Plan:
    """The plan in the first one's coordinates that does what both do, one after the other."""
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, dims in first.kept.items():
        for dim, rows in dims.items():
            later = second.kept.get(name, {}).get(dim)
            kept.setdefault(name, {})[dim] = rows if later is None else tuple(rows[i] for i in later)
    silent: dict[str, dict[int, tuple[int, ...]]] = {name: dict(dims) for name, dims in first.silent.items()}
    for name, dims in second.silent.items():
        for dim, atoms in dims.items():
            earlier = silent.setdefault(name, {}).get(dim, ())
            silent[name][dim] = (*earlier, *(first.kept[name][dim][i] for i in atoms))
    return replace(second, kept=kept, sizes=first.sizes, silent=silent, notes=(*first.notes, *second.notes))


def plan_of(slim: nn.Module) -> Plan:
    """The plan that made a slim module, in the coordinates of the original model.

    Raises:
        PlanMismatchError: the module was not made by fxprune.
    """
    found = _record(slim)
    if found is None:
        raise PlanMismatchError(
            f"this {type(slim).__name__} carries no plan: it was not made by fxprune.", got=type(slim).__name__
        )
    return found


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
) -> fx.GraphModule:
    """A physically smaller, verified version of ``model``.

    Args: see ``analyze`` (model, example_inputs, keep), ``plan`` (ratio, score, floor, round_to) and ``apply`` (verify).

    Returns:
        A ``GraphModule`` on the model's device, in its dtype and mode, with its parameter names; ``plan_of`` tells what went.

    Raises:
        FxpruneError: one of its subclasses; nothing is returned and the model is unchanged.
    """
    del absorb  # in this version what a removed channel still emits is dropped, as the paper does
    graph, inputs = _analyze(model, example_inputs, keep)
    for _ in range(ROUNDS):
        decided = plan(graph, ratio, budget=budget, score=score, layout=layout, floor=floor, round_to=round_to)
        try:
            return _apply(model, graph, decided, inputs, verify=verify)
        except OrderConflictError as conflict:
            graph = _yield_to(graph, conflict.components, conflict.node)
    raise FxpruneError("the order of channels did not settle; please report this model.")


def verify(model: nn.Module, slim: fx.GraphModule, inputs: Any = None) -> Evidence:
    """Prove a slim model equal to the masked original on concrete inputs.

    Raises:
        VerificationError: at the first node that differs.
    """
    graph, found = _analyze(model, inputs)
    return _verify(graph, slim, plan_of(slim), found)


def _verify(graph: ChannelGraph, slim: fx.GraphModule, decided: Plan, inputs: Inputs) -> Evidence:
    return verify_slim(graph.program.captured.module(), slim, decided, inputs.args, dict(inputs.kwargs))
