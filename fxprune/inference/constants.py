"""What a program computes from its weights alone is computed once.

1. A read of a flag (``self.training``) is replaced by its value in evaluation mode.
2. A node is *constant* if it is a call whose inputs are all constant tensors, at least one of them, and that neither changes its inputs nor
   draws random numbers. What non-constant nodes read of constant ones is stored as a buffer, unless it would be larger than twice what it is
   computed from. Tensors that some node of the program changes in place are not constant, nor is what is computed from them.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from fxprune.provenance.interpret import attribute

AUGMENTED = frozenset(
    getattr(operator, f"i{name}")
    for name in "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift concat".split()
)
RANDOM = ("rand", "dropout", "bernoulli", "normal", "multinomial", "stochastic", "empty", "uniform")


def mutates(node: fx.Node) -> bool:
    """The node may change one of its inputs, as far as its name and arguments tell."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_module":
        return False  # modules of a program that are activations in place are asked for their flag where it matters
    if node.target is operator.setitem or node.target in AUGMENTED or node.kwargs.get("inplace") or "out" in node.kwargs:
        return True
    return name.endswith("_") and not name.endswith("__")


def drawn(node: fx.Node) -> bool:
    """The node draws random numbers, or leaves memory as it is."""
    name = str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", ""))
    return any(part in name for part in RANDOM)


def settle_flags(graph: fx.Graph, root: nn.Module) -> None:
    """Clause 1."""
    for node in list(graph.nodes):
        if node.op == "get_attr":
            value = attribute(root, str(node.target))
            if isinstance(value, (bool, int, float, str, type(None))):
                for user in list(node.users):
                    replace_input(user, node, value)
                graph.erase_node(node)


def replace_input(user: fx.Node, old: fx.Node, new: Any) -> None:
    """Put a value in the place of a node among the arguments of another."""

    def swap(node: fx.Node) -> Any:
        return new if node is old else node

    user.args = map_arg(user.args, swap)
    user.kwargs = map_arg(user.kwargs, swap)


@torch.no_grad()
def fold_constants(graph: fx.Graph, root: nn.Module) -> int:
    """Clause 2; the number of buffers that took the place of calls."""
    changed = _changed(graph)
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        value = _value(node, root, values, changed)
        if isinstance(value, Tensor):
            values[node] = value
    made = 0
    for node, value in list(values.items()):
        if node.op != "get_attr" and any(user not in values for user in node.users):
            name = f"_constant_{made}"
            made += 1
            root.register_buffer(name, value.detach().clone().contiguous())
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(name))
    return made


def _value(node: fx.Node, root: nn.Module, values: dict[fx.Node, Any], changed: set[fx.Node]) -> Any:
    if node in changed:
        return None
    if node.op == "get_attr":
        return attribute(root, str(node.target))
    if node.op not in ("call_function", "call_method") or mutates(node) or drawn(node):
        return None
    if not node.all_input_nodes or any(source not in values for source in node.all_input_nodes):
        return None
    args, kwargs = map_arg(node.args, values.__getitem__), map_arg(node.kwargs, values.__getitem__)
    called: Any = getattr(args[0], str(node.target)) if node.op == "call_method" else node.target
    value = called(*(args[1:] if node.op == "call_method" else args), **kwargs)
    sources = sum(values[source].numel() for source in node.all_input_nodes)
    return value if isinstance(value, Tensor) and value.numel() <= 2 * sources else None


def _changed(graph: fx.Graph) -> set[fx.Node]:
    """Tensors that the program changes in place, and everything that they may share memory with (clause 2)."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if mutates(node) or (
            node.op == "call_module" and node.all_input_nodes and all(n.op == "get_attr" for n in node.all_input_nodes)
        ):
            pending = list(node.all_input_nodes[:1])
            while pending:
                source = pending.pop()
                if source not in found and source.op != "placeholder":
                    found.add(source)
                    pending.extend(source.all_input_nodes)
    return found
