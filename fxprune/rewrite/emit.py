"""Emit the slim program.

1. Axes lose their dead atoms; modules of a structural clone get slim tensors (first on meta) and patched attributes.
2. Node by node, the new program is run on meta with the ORIGINAL atoms as ids (arrival.py). A node whose result has not the predicted
   shape, or does not hold the predicted channels, has its literals patched (literals.py) and is run again. What foreseen.py knows
   without a run is not run.
3. Parameter axes take the order in which elements arrive. When a pass has changed an order, the next one starts from it.
4. Weights follow last (materialize.py).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.clone import named_tensors, walk
from fxprune.capture.inputs import Inputs
from fxprune.errors import RewriteError
from fxprune.graph.channels import ChannelGraph
from fxprune.plan import Kept
from fxprune.provenance.factor import Ids, Mask, Value
from fxprune.provenance.interpret import attribute, evaluate, evaluation_cloned
from fxprune.provenance.ledger import SINGLE, Axis
from fxprune.provenance.rules import find
from fxprune.provenance.tracker import Tracker
from fxprune.rewrite import attributes, foreseen, literals
from fxprune.rewrite.arrival import Arrival, OrderConflictError, by_node
from fxprune.rewrite.materialize import assemble, fill
from fxprune.rewrite.passes import OTHERS, Pass, compare, predict, shapes
from fxprune.rewrite.select import SELECT, cuts_of, selecting, tidied
from fxprune.rewrite.slicing import living, slim_shape

PASSES = 8


@dataclass(frozen=True, slots=True)
class Emitted:
    """The slim program and the order in which each axis' survivors stand in it."""

    module: nn.Module
    order: Mapping[Axis, Ids]
    reordered: bool = False


def emit(
    graph: ChannelGraph,
    removed: Mask,
    inputs: Inputs,
    silent: Kept | None = None,
    kept: Kept | None = None,
    *,
    weights: bool = True,
) -> Emitted:
    """The slim program for a set of removed coupled channels.

    ``kept`` is the order in which a plan lists what stays; ascending where it says nothing.
    ``weights=False`` stops before clause 4: the result's tensors are on meta (used to probe a plan).

    Raises:
        OrderConflictError: channels arrive in an order that no weights can mend.
        RewriteError: a node cannot be patched to give what provenance predicts.
    """
    component = graph.closed.component
    alive = ~removed[component]
    order, same = {}, dict[Any, Ids]()  # axes that keep the same positions in the same order share one array
    for axis in graph.axes:
        live = alive[axis.start : axis.start + axis.size]
        rows = (kept or {}).get(axis.name, {}).get(axis.dim)
        key = (live.tobytes(), id(rows))
        if key not in same:
            ascending = same.setdefault(key[0], np.flatnonzero(live))
            same[key] = listed(ascending, rows)
        order[axis] = same[key]
    by_name: dict[str, list[Axis]] = {}
    for axis in graph.axes:
        by_name.setdefault(axis.name, []).append(axis)
    blocks = by_node(graph.program.recorder.blocks)
    reordered = False
    for _ in range(PASSES):
        arrival = Arrival(component, alive, graph.program.recorder.created, order, blocks, graph.program.recorder.unproduced)
        try:
            new, modules = _run(graph, alive, arrival, by_name, inputs)
        except OrderConflictError:
            if not arrival.reordered:
                raise
            order, reordered = arrival.order, True
            continue
        if not arrival.reordered:
            break
        order, reordered = arrival.order, True
    else:
        raise RewriteError(f"the order of channels did not settle in {PASSES} passes.")
    if weights:
        fill(graph, modules, by_name, order, silent or {})
    return Emitted(assemble(graph, modules, new), order, reordered)


def listed(ascending: Ids, rows: Sequence[int] | None) -> Ids:
    """The survivors of an axis in the order of a plan's rows."""
    if rows is None or len(rows) != len(ascending):
        return ascending
    listed = np.array(rows, np.int64)
    same = np.array_equal(listed, ascending) or not np.array_equal(np.sort(listed), ascending)
    return ascending if same else listed


def _run(
    graph: ChannelGraph, alive: Mask, arrival: Arrival, by_name: dict[str, list[Axis]], inputs: Inputs
) -> tuple[fx.Graph, list[tuple[str, nn.Module]]]:
    captured = graph.program.captured
    originals = captured.tensors

    def shrink(name: str, old: Tensor) -> Tensor:
        known = old is originals.get(name)
        shape = slim_shape(old.shape, by_name.get(name, ()), arrival.order) if known else tuple(old.shape)
        return torch.empty(shape, dtype=old.dtype, device="meta")

    root, modules = evaluation_cloned(captured.root, shrink)
    distinct = {id(rows): rows for rows in arrival.order.values()}
    calm = not graph.closed.cells and all(bool((np.diff(rows) > 0).all()) for rows in distinct.values())
    later = {f"{n}." if n else "" for n, m in modules if calm and foreseen.plain(m)}
    singles: dict[str, set[int]] = {}
    for pin in graph.program.recorder.pins:
        if pin.reason == SINGLE:
            singles.setdefault(pin.node, set()).update(arrival.component[pin.ids].tolist())
    state = Pass(graph, alive, arrival, Tracker(arrival, find), root, by_name, {}, dict(modules), singles, calm)
    for name, tensor in named_tensors(modules).items():
        if name[: name.rfind(".") + 1] in later:
            state.unbound[id(tensor)] = (name, tensor)
        else:
            state.bind(name, tensor)
    with torch.no_grad():
        groups = living(captured.modules, by_name, arrival.order)
        for (name, module), (_, original) in zip(modules, captured.modules, strict=True):
            attributes.from_weights(module, original, groups.get(name, 0))
    return _nodes(state, inputs.on_meta()), modules


def _nodes(state: Pass, inputs: Inputs) -> fx.Graph:
    """Clause 2, for every node in order."""
    source = state.graph.program.captured.graph
    new = fx.Graph()
    new.set_codegen(source._codegen)
    table: dict[fx.Node, fx.Node] = {}
    env: dict[fx.Node, Any] = {}
    feed = iter(inputs.args)
    cuts = cuts_of(state.graph)
    with torch.no_grad():
        for node in source.nodes:
            copy = new.node_copy(node, lambda n: table[n])
            copy.name = node.name
            table[node] = copy
            state.arrival.begin(node.name)
            if node.op == "placeholder":
                name = str(node.target).lstrip("*")
                given = inputs.kwargs[name] if name in inputs.kwargs else next(feed, node.args[0] if node.args else {})
                env[copy] = given
            else:
                cut = cuts.get(node.name)
                seen = env if cut is None else selecting(state, *cut, copy, env)
                env[copy] = _node(state, node, copy, seen)
    if cuts or any(SELECT in node.meta for node in new.nodes):
        tidied(
            new,
            state.root,
            state.graph.program.captured.tensors,
            {n: x.shape[1] for n, x in env.items() if isinstance(x, Tensor) and x.dim() > 1},
        )
    return new


def _node(state: Pass, node: fx.Node, copy: fx.Node, env: MutableMapping[fx.Node, Any]) -> Any:
    expected = state.graph.nodes[node.name]
    if state.in_order(node):
        known = _foreseen(state, node, copy, expected, env)
        if known is not None:
            return known
    if state.unbound:
        _bind_all(state, node)
    if not _always(state, node, copy, env):
        result, problem = _attempt(state, copy, expected, env)
        if problem is None:
            return result
    else:
        problem = "its literals are positions"
    change = _patch_module if node.op == "call_module" else _patch_call
    changed = change(state, node, copy, expected, env)
    if changed or problem == "its literals are positions":
        result, problem = _attempt(state, copy, expected, env)
        if problem is None:
            return result
    held = [ids.ravel() for v in pytree.tree_leaves(expected) if isinstance(v, Value) for ids in v.factors]
    if problem == OTHERS and held and state.graph.closed.cells:
        raise OrderConflictError(
            f"at node {node.name!r} channels arrive in the place of others.",
            node.name,
            np.unique(state.arrival.component[np.concatenate(held)]),
        )
    raise RewriteError(
        f"node {node.name!r} ({node.op} {node.target}) cannot be made smaller: {problem}.{_context(node)}",
        node=node.name,
        target=str(node.target),
        expected=shapes(state, expected),
    )


def _foreseen(state: Pass, node: fx.Node, copy: fx.Node, expected: Any, env: MutableMapping[fx.Node, Any]) -> Tensor | None:
    """The slim result of a node that need not be run (foreseen.py), or None."""
    if not isinstance(expected, Value) or node.op not in ("call_module", "call_function"):
        return None
    module = state.modules.get(str(node.target)) if node.op == "call_module" else None
    if node.op == "call_module" and (module is None or not foreseen.plain(module)):
        return None
    given = fx.node.map_arg(copy.args, lambda n: env[n])
    predicted, kind = predict(state, expected), foreseen.dtype(given)
    if predicted is None or kind is None or not foreseen.holds(copy, module, given, predicted):
        return None
    factors = []
    for ids in expected.factors:
        if id(ids) not in state.packed:
            state.packed[id(ids)] = foreseen.packed(ids, state.alive)
        live = state.packed[id(ids)]
        if live is None:
            return None
        factors.append(live)
    return state.tracker.bind(torch.empty(predicted, dtype=kind, device="meta"), factors)


def _bind_all(state: Pass, node: fx.Node) -> None:
    """Before a node is run: the tensors of a layer that was expected not to be."""
    if node.op == "get_attr":
        held: list[Any] = [attribute(state.root, str(node.target))]
    elif node.op == "call_module":
        inner = walk(state.modules.get(str(node.target)) or state.root.get_submodule(str(node.target)))
        held = [t for _, m in inner for t in (*m._parameters.values(), *m._buffers.values())]
    else:
        return
    for tensor in held:
        late = state.unbound.pop(id(tensor), None)
        if late is not None:
            state.bind(*late)


def _created(state: Pass, node: fx.Node) -> tuple[int, ...]:
    """Live counts of the atoms without a producer that a node created."""
    created = state.arrival.created
    counts: list[int] = []
    while (node.name, len(counts)) in created:
        counts.append(int(state.alive[created[(node.name, len(counts))]].sum()))
    return tuple(counts)


def _blocks_left(state: Pass, node: fx.Node) -> int:
    """How many of a node's blocks live, where some have gone; 0 otherwise."""
    ids = state.arrival.created.get((node.name, 0))
    return int(state.alive[ids].sum()) if ids is not None and not state.alive[ids].all() else 0


def _always(state: Pass, node: fx.Node, copy: fx.Node, env: MutableMapping[fx.Node, Any]) -> bool:
    """The node's literals are positions or numbers, which a shape does not check."""
    if node.op == "call_module":
        return isinstance(state.root.get_submodule(str(node.target)), nn.GroupNorm) and _blocks_left(state, node) > 0
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target in literals.ALWAYS:
        return True
    if node.target in literals.BLOCKS:
        return _blocks_left(state, node) > 0
    if node.target not in literals.ARITHMETIC:
        return False
    values = [env.get(arg) for arg in copy.args if isinstance(arg, fx.Node)]
    return any(isinstance(v, Tensor) for v in values) and any(isinstance(v, (int, float)) for v in values)


def _context(node: fx.Node) -> str:
    lines = [n.format_node() or "" for n in (node.prev, node, node.next) if n.op != "root"]
    return "\n    " + "\n    ".join(lines)


def _attempt(state: Pass, copy: fx.Node, expected: Any, env: MutableMapping[fx.Node, Any]) -> tuple[Any, str | None]:
    """Evaluate a node of the new program; the second result says what is wrong with it, or None."""
    state.arrival.begin(copy.name)
    try:
        result = evaluate(copy, state.root, env, state.tracker)
    except RewriteError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever an operator complains about is the reason to patch its literals
        return None, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if not state.singles.get(copy.name, set()) <= state.arrival.singles:
        return result, "it takes other channels than provenance predicts"
    return result, compare(state, expected, result)


def _patch_call(state: Pass, node: fx.Node, copy: fx.Node, expected: Any, env: MutableMapping[fx.Node, Any]) -> bool:
    originals = fx.node.map_arg((node.args, node.kwargs), lambda n: state.graph.nodes[n.name])
    slim = fx.node.map_arg((copy.args, copy.kwargs), lambda n: env[n])

    def constant(part: Any) -> Tensor | None:
        if isinstance(part, fx.Node) and part.op == "get_attr":
            found = attribute(state.graph.program.captured.root, str(part.target))
            return found if isinstance(found, Tensor) and not found.is_floating_point() else None
        return None

    def item(whole: fx.Node, i: int, value: Any) -> fx.Node:
        with copy.graph.inserting_before(copy):
            made = copy.graph.call_function(operator.getitem, (whole, i))
        made.name = f"{copy.name}_size_{i}"
        env[made] = value
        return made

    site = literals.Site(copy, originals, slim, shapes(state, expected), state.alive, _created(state, node), constant, item)
    call = literals.patch(site)
    if call is None:
        return False
    target, args, kwargs = call
    if target is operator.getitem and copy.op == "call_method":
        copy.op = "call_function"
    copy.target, copy.args, copy.kwargs = target, args, kwargs
    return True


def _patch_module(state: Pass, node: fx.Node, copy: fx.Node, expected: Any, env: MutableMapping[fx.Node, Any]) -> bool:
    module = state.root.get_submodule(str(node.target))
    given = next((env[a] for a in copy.all_input_nodes), None)
    if not isinstance(given, Tensor) or not isinstance(expected, Value):
        return False
    value = state.graph.nodes[node.all_input_nodes[0].name]
    padding = getattr(module, "padding", None)
    pads = None
    if isinstance(module, nn.modules.padding._ConstantPadNd) and isinstance(padding, tuple):
        site = literals.Site(
            copy, ((value,), {}), ((given,), {}), None, state.alive, _created(state, node), lambda _: None, _no_item
        )
        pads = literals.pad_counts(site, value, list(padding))
    predicted = predict(state, expected)
    left = _blocks_left(state, node)
    return predicted is not None and attributes.from_values(module, tuple(given.shape), predicted, pads, left)


def _no_item(whole: fx.Node, i: int, value: Any) -> fx.Node:
    raise RewriteError(f"entry {i} of {whole.name!r} ({value}) is read where no node can be put.", node=whole.name)
