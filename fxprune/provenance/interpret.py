"""Run a captured graph node by node on meta tensors under a tracker.

1. Parameters and buffers of floating or boolean dtype enter with one fresh factor per dimension of size > 1 (the second dimension of a grouped
   convolution's weight with one run of atoms per block of rows; its window with none); integer buffers enter as constants with their numbers.
2. What a node computes is kept as a pytree whose tensors are ``Value``s.
3. Model outputs are pinned.
4. Rows that the program computes to take out of a parameter or buffer (the first n of a table of positions) are pinned, those that these
   inputs do not take included: others do.
5. Arithmetic on sizes, and what is asked about a tensor (its shape, its dtype), needs no tracker.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.capture.arguments import arguments
from fxprune.capture.clone import cloned, module_at, named_tensors, to_meta, walk
from fxprune.capture.inputs import Inputs
from fxprune.capture.objects import held
from fxprune.capture.tracer import Captured
from fxprune.errors import CaptureError, FxpruneError, InputError
from fxprune.provenance.factor import Ids
from fxprune.provenance.ledger import Recorder
from fxprune.provenance.rules import find
from fxprune.provenance.rules.shortcuts import short, short_call
from fxprune.provenance.tracker import Tracker

OnNode = Callable[[fx.Node, Any], None]


class Before(Protocol):
    """What changes what nodes see of the values before them (cuts.py)."""

    def tracker(self, recorder: Recorder) -> Tracker: ...
    def before(self, node: fx.Node, env: Mapping[fx.Node, Any], tracker: Tracker) -> Mapping[fx.Node, Any]: ...


@dataclass(frozen=True, slots=True)
class Interpreted:
    """A recorded run: what every node computes (clause 2) and what the ledger took down.

    ``hollow`` is the root without numbers; ``inputs`` are the example inputs without numbers.
    """

    captured: Captured
    recorder: Recorder
    nodes: Mapping[str, Any]
    roots: Mapping[str, tuple[Ids, ...]]
    hollow: nn.Module
    inputs: Inputs = field(default_factory=lambda: Inputs((), {}))


def interpret(captured: Captured, inputs: Inputs, cutter: Before | None = None) -> Interpreted:
    """Provenance of every node of a captured program (DESIGN: analyze).

    Raises:
        InputError: the inputs do not fit the program.
        CaptureError: the program reads numbers out of tensors.
    """
    recorder = Recorder()
    tracker = Tracker(recorder, find) if cutter is None else cutter.tracker(recorder)
    root, modules = evaluation_cloned(captured.root, to_meta)
    roots = {}
    convolutions, real = convolution_weights(captured.modules), captured.tensors
    used = used_tensors(captured.graph, root)
    for name, tensor in named_tensors(modules).items():
        if id(tensor) not in used:
            continue
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            roots[name] = tuple(enter(recorder, name, tensor.shape, convolutions.get(name, 1), name in convolutions))
            tracker.bind(tensor, roots[name])
        else:
            number = real[name]
            if number.device.type != "meta":
                tracker.set_constant(tensor, number.detach().cpu())
    nodes: dict[str, Any] = {}

    def keep(node: fx.Node, result: Any) -> None:
        nodes[node.name] = as_values(result, tracker)

    hollow = inputs.on_meta()
    run(captured.graph, root, tracker, hollow, keep, cutter)
    return Interpreted(captured, recorder, nodes, roots, root, hollow)


def evaluation_clone(root: nn.Module, tensor: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A structural clone in evaluation mode."""
    return evaluation_cloned(root, tensor)[0]


def evaluation_cloned(root: nn.Module, tensor: Callable[[str, Tensor], Tensor]) -> tuple[nn.Module, list[tuple[str, nn.Module]]]:
    """The same, and its modules by their first names."""
    new, modules = cloned(root, tensor)
    for _, module in modules:
        module.__dict__["training"] = False
    return new, modules


def used_tensors(graph: fx.Graph, root: nn.Module) -> set[int]:
    """The identities of all tensors that the program can reach."""
    found: set[int] = set()
    for node in graph.nodes:
        if node.op == "call_module":
            called = module_at(root, str(node.target))
            for _, module in walk(called) if called._modules else [("", called)]:
                found.update(map(id, module._parameters.values()))
                found.update(map(id, module._buffers.values()))
        elif node.op == "get_attr":
            found.add(id(attribute(root, str(node.target))))
    return found


def convolution_weights(modules: list[tuple[str, nn.Module]]) -> dict[str, int]:
    """Names of convolutions' weights and their numbers of groups. Dimensions from the third on are windows: no channels."""
    convolutions = [(name, m) for name, m in modules if isinstance(m, nn.modules.conv._ConvNd)]
    return {f"{name}.weight" if name else "weight": m.groups for name, m in convolutions}


def enter(recorder: Recorder, name: str, shape: torch.Size, blocks: int, window: bool = False) -> list[Ids]:
    """Fresh factors of a parameter or buffer (clause 1)."""
    rank, factors = len(shape), []
    for dim, size in enumerate(shape):
        if size < 2 or (window and dim > 1):
            continue
        if dim == 1 and blocks > 1:
            ids = recorder.axis(name, dim, size, blocks).reshape(blocks, size)
            rows = np.repeat(ids, shape[0] // blocks, axis=0)
            factors.append(rows.reshape(rows.shape + (1,) * (rank - 2)))
        else:
            factors.append(recorder.axis(name, dim, size).reshape((1,) * dim + (-1,) + (1,) * (rank - dim - 1)))
    return factors


def as_values(result: Any, tracker: Tracker) -> Any:
    """A node's result with ``Value`` in the place of tensors."""
    if isinstance(result, Tensor):
        return tracker.value(result)
    if type(result) in (tuple, list):
        return type(result)(as_values(item, tracker) for item in result)
    if type(result) is dict:
        return {key: as_values(item, tracker) for key, item in result.items()}
    if isinstance(result, (int, float, bool, str, type(None), torch.Size, torch.dtype, torch.device)):
        return result
    leaves, spec = torch.utils._pytree.tree_flatten(result)
    return torch.utils._pytree.tree_unflatten([tracker.value(x) if isinstance(x, Tensor) else x for x in leaves], spec)


def run(
    graph: fx.Graph, root: nn.Module, tracker: Tracker, inputs: Inputs, on_node: OnNode, cutter: Before | None = None
) -> None:
    """Evaluate every node under the tracker, in order; ``on_node`` sees each result (clauses 2 and 3)."""
    env: dict[fx.Node, Any] = {}
    feed = iter(inputs.args)
    with torch.no_grad():
        for node in graph.nodes:
            tracker.ledger.node = node.name
            if node.op == "placeholder":
                result = _argument(node, feed, inputs.kwargs)
            else:
                try:
                    result = evaluate(node, root, env if cutter is None else cutter.before(node, env, tracker), tracker)
                except FxpruneError:
                    raise
                except Exception as error:
                    raise InputError(_complaint(node, error), node=node.name, target=str(node.target), got=str(error)) from error
            if node.op == "output":
                _pin_outputs(result, tracker)
            env[node] = result
            on_node(node, result)
    taken = {str(node.target).lstrip("*") for node in graph.nodes if node.op == "placeholder"}
    extra = [name for name in inputs.kwargs if name not in taken]
    if extra and not any(str(node.target).startswith("**") for node in graph.nodes if node.op == "placeholder"):
        raise InputError(
            f"the model takes no input {extra[0]!r}; it takes {', '.join(sorted(taken))}.", node=extra[0], got=extra[0]
        )
    if next(feed, _MISSING) is not _MISSING:
        raise InputError("more example inputs were given than the model takes.", expected=len(taken), got=len(inputs.args))


_MISSING = object()


def _argument(node: fx.Node, feed: Any, kwargs: Mapping[str, Any]) -> Any:
    name = str(node.target).lstrip("*")
    if name in kwargs:
        return kwargs[name]
    if str(node.target).startswith("**"):
        return {}
    value = next(feed, _MISSING)
    if value is not _MISSING:
        return value
    if node.args:
        return node.args[0]
    raise InputError(
        f"the model takes an input {name!r}, and example_inputs does not give it.",
        node=node.name,
        expected=name,
        got=tuple(kwargs),
    )


def evaluate(node: fx.Node, root: nn.Module, env: Mapping[fx.Node, Any], tracker: Tracker) -> Any:
    """One node on the values of those before it, under the tracker, or by a shortcut."""
    args, kwargs = arguments(node, env.__getitem__)
    if node.op == "call_module":
        module = module_at(root, str(node.target))
        found = short(tracker, module, args, kwargs)
        if found is not None:
            return found
        tracker.visible = False
        with tracker:
            return module(*args, **kwargs)
    if node.op == "output":
        return args[0]
    if node.target in ABOUT and _asks(node, args):
        ask: Any = node.target if node.op == "call_function" else getattr(torch.Tensor, str(node.target))
        return ask(*args, **kwargs)
    if node.target in (operator.getitem, operator.setitem) and isinstance(args[0], Tensor):
        _keep_table(node, args[0], tracker)
        args = (args[0], _known_key(args[1], tracker), *args[2:])
    tracker.visible = _visible(node, env)
    if node.op == "call_function":
        found = short_call(tracker, node.target, args, kwargs)
        if found is not None:
            return found
    with tracker:
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "get_attr":
            return attribute(root, str(node.target))
    raise CaptureError(f"node {node.name!r} has the unknown kind {node.op!r}.", node=node.name)


def _asks(node: fx.Node, args: Sequence[Any]) -> bool:
    """Clause 5: no tensor is computed."""
    if node.op == "call_method":
        return isinstance(args[0], Tensor)
    if node.target is getattr:
        return args[1] in ABOUT
    return not any(isinstance(arg, (Tensor, list, tuple)) for arg in args) or type(args[0]) is torch.Size


def _keep_table(node: fx.Node, table: Tensor, tracker: Tracker) -> None:
    """Clause 4."""
    source, key = node.args[0], node.args[1]
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        return
    parts = [part for part in (key if isinstance(key, tuple) else (key,)) if part is not None]
    if Ellipsis in [part for part in parts if not isinstance(part, fx.Node)]:
        place = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts[place : place + 1] = [slice(None)] * (table.dim() - len(parts) + 1)
    for dim, part in enumerate(parts):
        ends = (part.start, part.stop) if isinstance(part, slice) else (part,)
        if any(isinstance(end, fx.Node) and end.op != "get_attr" for end in ends):
            for ids in tracker.value(table).factors:
                if dim < ids.ndim and ids.shape[dim] > 1:
                    tracker.ledger.pin(ids, "rows of a table of which the inputs decide what is taken")


def _visible(node: fx.Node, env: Mapping[fx.Node, Any]) -> bool:
    """The node indexes, by literals or by constants of the model (rules/indexing.py, clause 2)."""
    if node.target not in INDEXING:
        return False
    return not any(isinstance(env[n], Tensor) and n.op != "get_attr" for n in node.all_input_nodes if n is not node.args[0])


ABOUT: frozenset[Any] = frozenset(
    {getattr, "size", "dim", "shape", "ndim", "dtype", "device"}
    | {getattr(operator, name) for name in "getitem add sub mul truediv floordiv mod pow neg eq ne lt le gt ge".split()}
)
INDEXING = (operator.getitem, operator.setitem, torch.index_select, "index_select", "__getitem__")


def _known_key(key: Any, tracker: Tracker) -> Any:
    """A key whose lists of numbers are constants that the tracker knows (Python's own conversion would lose the numbers)."""
    if isinstance(key, tuple):
        return tuple(_known_key(part, tracker) for part in key)
    if isinstance(key, list) and key and all(isinstance(i, (int, bool)) for i in key):
        numbers = torch.tensor(key, device="cpu")
        index = torch.empty(numbers.shape, dtype=numbers.dtype, device="meta")
        tracker.set_constant(index, numbers)
        return index
    return key


def attribute(root: nn.Module, target: str) -> Any:
    found: Any = root
    for part in target.split("."):
        found = getattr(found, part)
    return found


def _pin_outputs(result: Any, tracker: Tracker) -> None:
    for tensor in held(result):
        for ids in tracker.value(tensor).factors:
            tracker.ledger.pin(ids, "a model output keeps its shape")


def _complaint(node: fx.Node, error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"the model fails on these example inputs at node {node.name!r} ({node.op} {node.target}): {line}"
