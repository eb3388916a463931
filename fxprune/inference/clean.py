"""Nodes that compute nothing at inference.

1. ``nn.Identity``, dropout of every kind, and functions that return their first argument unless ``training=True`` (functional dropout, stochastic
   depth) are replaced by what they are given.
2. A node without users goes if it is known to have no effect: reads, modules of ``torch.nn`` that do not work in place, functions and methods
   that do not change their inputs.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

from fxprune.capture.clone import module_at
from fxprune.inference.constants import mutates

FUNCTIONS = frozenset({F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout})
NAMES = frozenset({"stochastic_depth", "drop_path", "drop_block2d", "drop_block3d"})


def remove_identities(graph: fx.Graph, root: nn.Module) -> tuple[str, ...]:
    """Clause 1; the names of the nodes that went."""
    gone = []
    for node in list(graph.nodes):
        if node.op == "call_module":
            module = module_at(root, str(node.target))
            idle = isinstance(module, _DropoutNd) or type(module) is nn.Identity
        else:
            idle = node.op == "call_function" and _idle(node)
        source = node.args[0] if node.args else node.kwargs.get("input")
        if idle and isinstance(source, fx.Node):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            gone.append(node.name)
    return tuple(gone)


def _idle(node: fx.Node) -> bool:
    target: Any = node.target
    if target not in FUNCTIONS and getattr(target, "__name__", "") not in NAMES:
        return False
    try:
        call = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return False
    call.apply_defaults()
    return call.arguments.get("training") is False


def remove_dead(graph: fx.Graph, root: nn.Module) -> int:
    """Clause 2; the number of nodes that went."""
    count = 0
    for node in reversed(list(graph.nodes)):
        if not node.users and _pure(node, root):
            graph.erase_node(node)
            count += 1
    return count


def _pure(node: fx.Node, root: nn.Module) -> bool:
    if node.op in ("placeholder", "output"):
        return False
    if node.op == "call_module":
        module = module_at(root, str(node.target))
        return type(module).__module__.startswith("torch.nn.") and not getattr(module, "inplace", False)
    return not mutates(node) and not node.is_impure()
