"""Emit the slim program.

1. Axes lose their dead atoms; modules of a structural clone get slim tensors (first on meta) and patched attributes.
2. Node by node, the new program is run on meta with the ORIGINAL atoms as ids (arrival.py). A node whose result has not the predicted
   shape, or does not hold the predicted channels, has its literals patched (literals.py) and is run again.
3. Parameter axes take the order in which elements arrive. When a pass has changed an order, the next one starts from it.
4. Silent atoms (plan.py, clause 4) are zeroed where they are read.
5. Weights are copied last, once, and only survivors.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from fxprune.provenance.factor import Ids, Mask, Value, live_sizes, support
from fxprune.provenance.interpret import attribute, evaluate, evaluation_clone
from fxprune.provenance.ledger import Axis
from fxprune.provenance.rules import find
from fxprune.provenance.tracker import Tracker
from fxprune.rewrite import attributes, literals
from fxprune.rewrite.arrival import Arrival, OrderConflictError
from fxprune.rewrite.slicing import LARGEST_CHUNK, SMALLEST_CHUNK, like, live_blocks, silence, slim_factors, slim_shape, take

PASSES = 8


@dataclass(frozen=True, slots=True)
class Emitted:
    """The slim program and the order in which each axis' survivors stand in it."""

    module: nn.Module
    order: Mapping[Axis, Ids]
    reordered: bool = False


@dataclass(slots=True)
class _Pass:
    """One run of the slim program (clause 2)."""

    graph: ChannelGraph
    alive: Mask
    arrival: Arrival
    tracker: Tracker
    root: nn.Module
    by_name: dict[str, list[Axis]]
    shapes: dict[tuple[Any, ...], tuple[int, ...]] = field(default_factory=dict)
    alike: set[tuple[int, int]] = field(default_factory=set)


def emit(graph: ChannelGraph, removed: Mask, inputs: Inputs, silent: Kept | None = None, *, weights: bool = True) -> Emitted:
    """The slim program for a set of removed coupled channels.

    ``weights=False`` stops before clause 5: the result's tensors are on meta (used to probe a plan).

    Raises:
        OrderConflictError: channels arrive in an order that no weights can mend.
        RewriteError: a node cannot be patched to give what provenance predicts.
    """
    component = graph.closed.component
    alive = ~removed[component]
    order = {a: np.flatnonzero(alive[a.start : a.start + a.size]) for a in graph.axes}
    by_name: dict[str, list[Axis]] = {}
    for axis in graph.axes:
        by_name.setdefault(axis.name, []).append(axis)
    reordered = False
    for _ in range(PASSES):
        arrival = Arrival(component, alive, graph.program.recorder.created, order, graph.program.recorder.unproduced)
        try:
            new, root = _run(graph, alive, arrival, by_name, inputs)
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
        _fill(graph, root, by_name, order, silent or {})
    return Emitted(_module(graph, root, new), order, reordered)


def _run(
    graph: ChannelGraph, alive: Mask, arrival: Arrival, by_name: dict[str, list[Axis]], inputs: Inputs
) -> tuple[fx.Graph, nn.Module]:
    captured = graph.program.captured
    originals = captured.tensors

    def shrink(name: str, old: Tensor) -> Tensor:
        known = old is originals.get(name)
        shape = slim_shape(old.shape, by_name.get(name, ()), arrival.order) if known else tuple(old.shape)
        return torch.empty(shape, dtype=old.dtype, device="meta")

    root = evaluation_clone(captured.root, shrink)
    tracker = Tracker(arrival, find)
    modules = walk(root)
    for name, tensor in named_tensors(modules).items():
        if name in graph.program.roots:
            axes = by_name.get(name, [])
            factors = slim_factors(originals[name].shape, axes, arrival.order)
            for axis, ids in zip(axes, factors, strict=True):
                arrival.enter(axis, ids)
            tracker.bind(tensor, factors)
        elif originals[name].device.type != "meta":
            tracker.set_constant(tensor, originals[name].detach().cpu())
    with torch.no_grad():
        living = {a.name: len(live_blocks(a, arrival.order)) for axes in by_name.values() for a in axes if a.blocks > 1}
        for (name, module), (_, original) in zip(modules, captured.modules, strict=True):
            attributes.from_weights(module, original, living.get(f"{name}.weight" if name else "weight", 0))
    state = _Pass(graph, alive, arrival, tracker, root, by_name)
    return _nodes(state, inputs.on_meta()), root


def _nodes(state: _Pass, inputs: Inputs) -> fx.Graph:
    """Clause 2, for every node in order."""
    source = state.graph.program.captured.graph
    new = fx.Graph()
    new.set_codegen(source._codegen)
    table: dict[fx.Node, fx.Node] = {}
    env: dict[fx.Node, Any] = {}
    feed = iter(inputs.args)
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
                env[copy] = _node(state, node, copy, env)
    return new


def _node(state: _Pass, node: fx.Node, copy: fx.Node, env: dict[fx.Node, Any]) -> Any:
    expected = state.graph.nodes[node.name]
    if not _always(node, copy, env):
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
    raise RewriteError(
        f"node {node.name!r} ({node.op} {node.target}) cannot be made smaller: {problem}.{_context(node)}",
        node=node.name,
        target=str(node.target),
        expected=_shapes(state, expected),
    )


def _always(node: fx.Node, copy: fx.Node, env: dict[fx.Node, Any]) -> bool:
    """The node's literals are positions or numbers, which a shape does not check."""
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target in literals.ALWAYS:
        return True
    if node.target not in literals.ARITHMETIC:
        return False
    values = [env.get(arg) for arg in copy.args if isinstance(arg, fx.Node)]
    return any(isinstance(v, Tensor) for v in values) and any(isinstance(v, (int, float)) for v in values)


def _context(node: fx.Node) -> str:
    lines = [n.format_node() or "" for n in (node.prev, node, node.next) if n.op != "root"]
    return "\n    " + "\n    ".join(lines)


def _attempt(state: _Pass, copy: fx.Node, expected: Any, env: dict[fx.Node, Any]) -> tuple[Any, str | None]:
    """Evaluate a node of the new program; the second result says what is wrong with it, or None."""
    state.arrival.begin(copy.name)
    try:
        result = evaluate(copy, state.root, env, state.tracker)
    except RewriteError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever an operator complains about is the reason to patch its literals
        return None, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return result, _compare(state, expected, result)


def _compare(state: _Pass, expected: Any, result: Any) -> str | None:
    """Shapes and channels of a slim result against what provenance predicts."""
    if isinstance(expected, Value):
        if not isinstance(result, Tensor):
            return "it is no tensor any more"
        predicted = _predict(state, expected)
        if predicted is None:
            raise OrderConflictError(
                f"what is left at node {state.arrival.node!r} does not fill a box.",
                state.arrival.node,
                np.unique(np.concatenate([state.arrival.component[ids].ravel() for ids in expected.factors])),
            )
        if tuple(result.shape) != predicted:
            return f"it has shape {tuple(result.shape)}, provenance predicts {predicted}"
        return _compare_channels(state, expected, state.tracker.value(result))
    if isinstance(expected, (tuple, list)):
        if not isinstance(result, (tuple, list)) or len(result) != len(expected):
            return f"it has another number of results than {len(expected)}"
        for old, new in zip(expected, result, strict=True):
            problem = _compare(state, old, new)
            if problem is not None:
                return problem
        return None
    if isinstance(expected, dict):
        return next((p for key in expected if (p := _compare(state, expected[key], result[key])) is not None), None)
    leaves = pytree.tree_leaves(expected)
    if any(isinstance(leaf, Value) for leaf in leaves):
        found = pytree.tree_leaves(result)
        return next((p for a, b in zip(leaves, found, strict=True) if (p := _compare(state, a, b)) is not None), None)
    return None


def _compare_channels(state: _Pass, expected: Value, got: Value) -> str | None:
    if len(expected.factors) != len(got.factors):
        return None
    component, fresh = state.arrival.component, state.arrival.is_fresh
    for old, new in zip(expected.factors, got.factors, strict=True):
        pair = (id(old), id(new))  # elementwise results share their factors
        if pair in state.alike:
            continue
        want, have = component[old[state.alive[old]]], component[new].ravel()
        if len(support(old)) == 1 and not np.array_equal(want, have):
            if (new == 0).any() or fresh(old) != fresh(new):
                continue
            if not np.array_equal(np.sort(want), np.sort(have)):
                return "it holds other channels than provenance predicts"
        state.alike.add(pair)
    return None


def _predict(state: _Pass, value: Value) -> tuple[int, ...] | None:
    if not value.factors:
        return value.shape
    key = (value.shape, *(id(ids) for ids in value.factors))
    found = state.shapes.get(key)
    if found is None:
        found = live_sizes(value.shape, value.factors, state.alive, state.graph.within_blocks)
        if found is not None:
            state.shapes[key] = found
    return found


def _shapes(state: _Pass, expected: Any) -> Any:
    return pytree.tree_map_only(Value, lambda v: _predict(state, v), expected)


def _patch_call(state: _Pass, node: fx.Node, copy: fx.Node, expected: Any, env: dict[fx.Node, Any]) -> bool:
    originals = fx.node.map_arg((node.args, node.kwargs), lambda n: state.graph.nodes[n.name])
    slim = fx.node.map_arg((copy.args, copy.kwargs), lambda n: env[n])
    created = state.arrival.created
    counts, k = [], 0
    while (node.name, k) in created:
        counts.append(int(state.alive[created[(node.name, k)]].sum()))
        k += 1

    def constant(part: Any) -> Tensor | None:
        if isinstance(part, fx.Node) and part.op == "get_attr":
            found = attribute(state.graph.program.captured.root, str(part.target))
            return found if isinstance(found, Tensor) and not found.is_floating_point() else None
        return None

    site = literals.Site(copy, originals, slim, _shapes(state, expected), state.alive, tuple(counts), constant)
    call = literals.patch(site)
    if call is None:
        return False
    target, args, kwargs = call
    if target is operator.getitem and copy.op == "call_method":
        copy.op = "call_function"
    copy.target, copy.args, copy.kwargs = target, args, kwargs
    return True


def _patch_module(state: _Pass, node: fx.Node, copy: fx.Node, expected: Any, env: dict[fx.Node, Any]) -> bool:
    module = state.root.get_submodule(str(node.target))
    given = next((env[a] for a in copy.all_input_nodes), None)
    if not isinstance(given, Tensor) or not isinstance(expected, Value):
        return False
    value = state.graph.nodes[node.all_input_nodes[0].name]
    padding = getattr(module, "padding", None)
    pads = None
    if isinstance(module, nn.modules.padding._ConstantPadNd) and isinstance(padding, tuple):
        created = state.arrival.created
        counts, k = [], 0
        while (node.name, k) in created:
            counts.append(int(state.alive[created[(node.name, k)]].sum()))
            k += 1
        site = literals.Site(copy, ((value,), {}), ((given,), {}), None, state.alive, tuple(counts), lambda _: None)
        pads = literals.pad_counts(site, value, list(padding))
    predicted = _predict(state, expected)
    return predicted is not None and attributes.from_values(module, tuple(given.shape), predicted, pads)


def _fill(graph: ChannelGraph, root: nn.Module, by_name: dict[str, list[Axis]], order: Mapping[Axis, Ids], silent: Kept) -> None:
    """Clause 5: real tensors in the place of the meta ones."""
    captured = graph.program.captured
    names = {id(tensor): name for name, tensor in captured.tensors.items()}
    copies: dict[int, Tensor] = {}
    total = sum(tensor.numel() * tensor.element_size() for tensor in captured.tensors.values())
    chunk = min(max(total // 64, SMALLEST_CHUNK), LARGEST_CHUNK)

    def copy(old: Tensor) -> Tensor:
        found = copies.get(id(old))
        if found is None:
            name = names.get(id(old), "")
            axes = by_name.get(name, ())
            new = take(old, axes, order, chunk)
            if name in silent:
                silence(new, old.shape, axes, order, silent[name])
            found = copies[id(old)] = like(old, new)
        return found

    for (_, target), (_, source) in zip(walk(root), captured.modules, strict=True):
        stores: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (target._parameters, source._parameters),
            (target._buffers, source._buffers),
        ]
        for new, own in stores:
            new.update({key: old if old is None else copy(old) for key, old in own.items()})
        for key, value in source.__dict__.items():
            if isinstance(value, Tensor):
                target.__dict__[key] = copy(value)
        if "_flat_weights_names" in target.__dict__:
            target.__dict__["_flat_weights"] = [getattr(target, name) for name in target.__dict__["_flat_weights_names"]]
        target.__dict__.pop("_fxprune_fitted", None)


def _module(graph: ChannelGraph, root: nn.Module, new: fx.Graph) -> fx.GraphModule:
    captured = graph.program.captured
    for (_, target), (_, source) in zip(walk(root), captured.modules, strict=True):
        target.__dict__["training"] = source.training
    slim = fx.GraphModule(root, new, captured.name)
    _alias(slim, captured.root)
    modes = {name: module.training for name, module in captured.modules}
    for name, module in walk(slim):
        module.__dict__["training"] = modes.get(name, slim.training)
    return slim


def _alias(slim: fx.GraphModule, root: nn.Module) -> None:
    """A module that the original also knows by another name keeps that name, and its state-dict keys."""
    known = walk(root)
    if sum(child is not None for _, module in known for child in module._modules.values()) == len(known) - 1:
        return
    first = {id(module): name for name, module in known}
    present = {name for name, _ in walk(slim)}
    for name, module in root.named_modules(remove_duplicate=False):
        own = first[id(module)]
        if name != own and own in present and name not in present:
            parent: nn.Module = slim
            *path, leaf = name.split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            if leaf not in parent._modules:
                parent.add_module(leaf, slim.get_submodule(own))
