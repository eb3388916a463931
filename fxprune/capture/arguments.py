"""The arguments of a node, as the generated code would hand them over.

1. Every node among them is replaced by its value.
2. Lists and dicts are new and can be written to: code makes a literal anew whenever it runs, and a function may fill in what it got.
   (fx keeps them as immutable containers.) Containers that are a node's value are handed on as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx


def arguments(node: fx.Node, value: Callable[[fx.Node], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of a node on values (clauses 1 and 2)."""
    return tuple(_on_values(arg, value) for arg in node.args), {key: _on_values(arg, value) for key, arg in node.kwargs.items()}


def _on_values(part: Any, value: Callable[[fx.Node], Any]) -> Any:
    if isinstance(part, fx.Node):
        return value(part)
    if isinstance(part, list):
        return [_on_values(item, value) for item in part]
    if isinstance(part, dict):
        return {key: _on_values(item, value) for key, item in part.items()}
    if isinstance(part, tuple):
        items = [_on_values(item, value) for item in part]
        return type(part)(*items) if hasattr(part, "_fields") else tuple(items)
    if isinstance(part, slice):
        return slice(*(_on_values(end, value) for end in (part.start, part.stop, part.step)))
    return part
