"""Functions of somebody's library that tracing recorded as one call (``torch.fx.wrap``), and what they hide.

1. A node that calls such a function cannot be patched inside. Where it cannot be made smaller as it stands, the function is *entered*: the
   model is captured again with what the function does recorded in its place (concrete.py).
2. Whether that will be needed shows in the function's own code in most cases: one that multiplies by weights and lays out what comes out
   holds their widths. It is entered at once, so that the model is captured, analyzed and emitted once. Any other stays the one call that
   it is until it proves to be in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx

Function = Callable[..., Any]
LAYOUTS = frozenset("view reshape chunk split unflatten expand repeat tensor_split split_with_sizes".split())
PRODUCTS = frozenset("linear matmul bmm baddbmm addmm einsum scaled_dot_product_attention conv1d conv2d conv3d".split())


def is_hidden(target: Any) -> bool:
    """A Python function that is neither torch's nor Python's."""
    module = getattr(target, "__module__", None) or ""
    return (
        callable(target)
        and hasattr(target, "__code__")
        and not module.startswith(("torch.", "_operator", "math"))
        and module != "torch"
    )


def holding_widths(nodes: Iterable[fx.Node]) -> frozenset[Function]:
    """Clause 2: the hidden functions to enter at once."""
    targets: set[Any] = {node.target for node in nodes if node.op == "call_function"}
    hidden = [target for target in targets if is_hidden(target)]
    return frozenset(f for f in hidden if all(names.intersection(f.__code__.co_names) for names in (LAYOUTS, PRODUCTS)))
