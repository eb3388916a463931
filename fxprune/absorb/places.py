"""Where corrections go: an existing bias, the running mean of the batch norm behind, or a tensor that is added.

1. A bias, or the running mean of the one batch norm that alone reads a reader, takes a correction if nothing else in the program uses that
   tensor. The correction is added to the bias, and taken off the running mean.
2. A module without a bias that is called once gets one. Everything else, and every border map, becomes a parameter of its own (``absorbed``)
   that is added behind the reader's node.
3. A plan that has made a model before says what it added (``Plan.added``); then exactly that is added again, zeros where nothing is to be said,
   so that state dicts fit.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.absorb.border import bordered
from fxprune.absorb.operators import operation
from fxprune.absorb.readers import Reader, reader
from fxprune.capture.clone import module_at, walk
from fxprune.capture.tracer import Captured
from fxprune.errors import PlanMismatchError
from fxprune.folds import Addition
from fxprune.plan import Plan
from fxprune.provenance.interpret import attribute


@dataclass(frozen=True, slots=True)
class Place:
    """The form of a fold (folds.py, clause 2) and the name of the tensor that takes it; ``added``: it is an addition."""

    form: str
    name: str
    added: bool = False


class Places:
    """The places of one captured program."""

    def __init__(self, captured: Captured, added: Sequence[Addition] | None) -> None:
        self.captured = captured
        self.added = added
        self.names = {id(t): name for name, t in captured.tensors.items()}
        self.modules = dict(captured.modules)
        self.calls = Counter[int]()
        self.uses = Counter[int]()
        for node in captured.graph.nodes:
            if node.op == "call_module":
                called = module_at(captured.root, str(node.target))
                self.calls[id(called)] += 1
                for _, m in walk(called) if called._modules else [("", called)]:
                    self.uses.update(map(id, (*m._parameters.values(), *m._buffers.values())))
            elif node.op == "get_attr":
                self.uses[id(attribute(captured.root, str(node.target)))] += len(node.users)
        self.taken = set(captured.tensors)

    def alone(self, name: str) -> bool:
        """One node uses this tensor, once."""
        return self.uses[id(self.captured.tensors[name])] == 1

    def place(self, reader: Reader, *, border: bool) -> Place | None:
        """Clauses 1 to 3; ``border``: the correction differs at the border. None: the plan allows no place."""
        if border and reader.channel == 1 and reader.window is not None:
            found = self.addition(reader, "map")
            if found is not None:
                return found
        if reader.bias and self.alone(reader.bias):
            return Place("bias", reader.bias)
        norm = self.norm(reader)
        if norm:
            return Place("norm", norm)
        module = self.modules.get(reader.module)
        free = module is not None and "bias" in module._parameters and not reader.bias
        if free and self.calls[id(module)] == 1:
            return self.addition(reader, "bias")
        return self.addition(reader, "sum")

    def addition(self, reader: Reader, form: str) -> Place | None:
        """A tensor to be added: one of the plan's, or a new one (clauses 2 and 3)."""
        if self.added is not None:
            found = next((a for a in self.added if a.node == reader.node.name and a.form == form), None)
            return None if found is None else Place(form, found.name, added=True)
        owner = reader.name.rpartition(".")[0]
        prefix = f"{owner}." if owner else ""
        if form == "bias":
            return Place(form, f"{reader.module}.bias" if reader.module else "bias", added=True)
        name, number = f"{prefix}absorbed", 0
        while name in self.taken:
            number += 1
            name = f"{prefix}absorbed_{number}"
        self.taken.add(name)
        return Place(form, name, added=True)

    def norm(self, reader: Reader) -> str:
        """The running mean of the one batch norm that alone reads the reader, or nothing."""
        if len(reader.node.users) != 1 or reader.made != 1:
            return ""
        user = next(iter(reader.node.users))
        if user.op not in ("call_module", "call_function") or not user.args or user.args[0] is not reader.node:
            return ""
        module = module_at(self.captured.root, str(user.target)) if user.op == "call_module" else None
        if operation(user, module).name != "batch_norm":
            return ""
        mean = module.running_mean if module is not None else _given(user, self.captured.root)
        if not isinstance(mean, Tensor) or id(mean) not in self.names or user.all_input_nodes.count(reader.node) != 1:
            return ""
        name = self.names[id(mean)]
        return name if self.alone(name) else ""


def _given(node: fx.Node, root: nn.Module) -> Tensor | None:
    """The running mean that a functional batch norm is given, in evaluation."""
    mean = node.args[1] if len(node.args) > 1 else node.kwargs.get("running_mean")
    training = node.args[5] if len(node.args) > 5 else node.kwargs.get("training", False)
    if not isinstance(mean, fx.Node) or mean.op != "get_attr" or training is True:
        return None
    found = attribute(root, str(mean.target))
    return found if isinstance(found, Tensor) else None


def install(slim: fx.GraphModule, captured: Captured, plan: Plan) -> None:
    """Give a slim module the tensors that its plan adds, filled with zeros, and the nodes that add them.

    Raises:
        PlanMismatchError: an addition of a node that the program has not.
    """
    if not plan.added:
        return
    nodes = {node.name: node for node in slim.graph.nodes}
    originals = {node.name: node for node in captured.graph.nodes}
    names = {id(t): name for name, t in captured.tensors.items()}
    for addition in plan.added:
        node, original = nodes.get(addition.node), originals.get(addition.node)
        if node is None or original is None:
            raise PlanMismatchError(
                f"the plan adds {addition.name!r} behind node {addition.node!r}, which this model's program has not. "
                "It was made for another model.",
                node=addition.node,
                got=addition.name,
            )
        found = _reader(original, captured, names)
        if found is None or (addition.form == "bias" and not found.module):
            raise PlanMismatchError(
                f"the plan adds {addition.name!r} behind node {addition.node!r}, which reads no channels.", node=addition.node
            )
        _install(slim, addition, node, found, plan)
    if any(addition.form != "bias" for addition in plan.added):
        slim.graph.lint()
        slim.recompile()


def _reader(node: fx.Node, captured: Captured, names: dict[int, str]) -> Reader | None:
    module = captured.root.get_submodule(str(node.target)) if node.op == "call_module" else None
    held = {n: attribute(captured.root, str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"}
    what = operation(node, module)
    ranks = [t.dim() for t in held.values() if isinstance(t, Tensor)]
    rank = module.weight.dim() if isinstance(module, nn.modules.conv._ConvNd) else max(ranks, default=2)
    return reader(node, what, module, names, max(2, rank), held)


def rows_of(plan: Plan, reader: Reader) -> Tensor:
    """The original output channels of a reader that the slim one has, in its order."""
    kept = plan.kept.get(reader.name, {}).get(reader.out)
    return torch.arange(reader.width, device="cpu") if kept is None else torch.from_numpy(np.array(kept, np.int64))


def shape_of(form: str, reader: Reader, plan: Plan) -> tuple[int, ...]:
    """The shape of an addition in the slim model."""
    count = len(rows_of(plan, reader))
    if form == "map":
        window = tuple(reader.weight.shape[2:])
        return (1, count, *window) if reader.transposed else (count, 1, *window)
    spatial = len(reader.window[0]) if form == "sum" and reader.window is not None else 0
    return (count, *[1] * spatial)


def _install(slim: fx.GraphModule, addition: Addition, node: fx.Node, reader: Reader, plan: Plan) -> None:
    weight = attribute(slim, reader.name)
    shape = shape_of(addition.form, reader, plan)
    zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    owner, _, key = addition.name.rpartition(".")
    parent = slim.get_submodule(owner)
    parent._parameters[key] = nn.Parameter(zeros, requires_grad=weight.requires_grad)
    if addition.form == "bias":
        return
    graph = slim.graph
    users = list(node.users)
    with graph.inserting_after(node):
        held = graph.get_attr(addition.name)
    taken = {n.name for n in graph.nodes}
    held.name = _unused(f"{node.name}_{key}_constants", taken)
    with graph.inserting_after(held):
        if addition.form == "sum":
            more = graph.call_function(operator.add, (node, held))
        else:
            assert reader.window is not None
            stride, padding, dilation, output = reader.window
            settings = (stride, padding, dilation, output if reader.transposed else None)
            more = graph.call_function(bordered, (node, node.args[0], held, *settings))
    more.name = _unused(f"{node.name}_{key}", taken)
    for user in users:
        user.replace_input_with(node, more)


def _unused(name: str, taken: set[str]) -> str:
    return next(n for n in (name, *(f"{name}_{i}" for i in range(1, len(taken) + 2))) if n not in taken)
