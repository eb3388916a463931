"""The module that holds a slim program: a ``GraphModule`` whose copies and pickles are exact.

1. ``fx.GraphModule`` is pickled as Python code and traced again, which turns in-place operators into out-of-place ones and refuses item
   assignment; ``SlimModule`` is pickled as its nodes. Its ``__dict__`` goes along whole: buffers and whether they are persistent, modes,
   hooks, modules with two names, ``meta``.
2. A node is pickled as (name, operation, target, arguments, type, meta): other nodes by their position, meta as far as it is plain.
"""

from __future__ import annotations

import copy
import sys
from importlib import import_module
from typing import Any

import torch
from torch import fx

PLAIN = (bool, int, str)
WRITTEN = frozenset({"_graph", "_code", "_lineno_map", "_prologue_start"})  # made anew from the nodes

Nodes = tuple[tuple[Any, ...], ...]


class _At(int):
    """The position of a node, among arguments."""


class _Name(str):
    """Module and name of a function that pickle does not find: ``torch.ops`` overloads, functions made by other functions."""

    __slots__ = ()


def written(graph: fx.Graph) -> Nodes:
    """Clause 2. Nothing of the result belongs to the graph."""
    places = {node: _At(i) for i, node in enumerate(graph.nodes)}

    def plain(node: fx.Node) -> Any:
        return places[node]

    return tuple(
        (
            node.name,
            node.op,
            _written(node.target),
            fx.node.map_arg(node.args, plain),
            fx.node.map_arg(node.kwargs, plain),
            node.type,
            {key: value for key, value in node.meta.items() if isinstance(value, PLAIN)},
        )
        for node in graph.nodes
    )


def read(nodes: Nodes) -> fx.Graph:
    """The graph that ``written`` took down, with the same names."""
    graph = fx.Graph()
    made: list[fx.Node] = []

    def known(value: Any) -> Any:
        return made[value] if type(value) is _At else value

    for name, op, target, args, kwargs, kind, meta in nodes:
        node = graph.create_node(
            op, _called(target), fx.node.map_aggregate(args, known), fx.node.map_aggregate(kwargs, known), name, kind
        )
        node.name = name
        node.meta.update(meta)
        made.append(node)
    return graph


def _written(target: Any) -> Any:
    if isinstance(target, torch._ops.OpOverload):
        return _Name(f"torch.ops:{target}")
    home, name = getattr(target, "__module__", None), getattr(target, "__name__", "")
    if "<locals>" in getattr(target, "__qualname__", "") and getattr(sys.modules.get(home or ""), name, None) is target:
        return _Name(f"{home}:{name}")
    return target


def _called(target: Any) -> Any:
    if type(target) is not _Name:
        return target
    home, _, name = target.partition(":")
    found: Any = torch.ops if home == "torch.ops" else import_module(home)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _empty(name: str) -> SlimModule:
    module = SlimModule.__new__(SlimModule)
    type(module).__name__ = name
    return module


class SlimModule(fx.GraphModule):
    """A ``GraphModule`` with exact copies (clause 1)."""

    def _state(self) -> tuple[dict[str, Any], Nodes, Any]:
        attributes = {key: value for key, value in self.__dict__.items() if key not in WRITTEN}
        return attributes, written(self._graph), self._graph._codegen

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (type(self).__name__,), self._state()

    def __setstate__(self, state: Any) -> None:
        attributes, nodes, codegen = state
        super().__setstate__(attributes)
        graph = read(nodes)
        graph.set_codegen(codegen)
        self.graph = graph

    def __deepcopy__(self, memo: dict[int, Any]) -> SlimModule:
        new = _empty(type(self).__name__)
        memo[id(self)] = new
        attributes, nodes, codegen = self._state()
        new.__setstate__((copy.deepcopy(attributes, memo), nodes, copy.deepcopy(codegen, memo)))
        return new
