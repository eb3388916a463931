"""What an eager run (provenance/shadow.py) must know about operators besides their rules.

1. ``numbers``: what Python gave to a call as numbers and not as sizes: scalars, the data of a literal tensor, and the scale that attention
   derives from a width if none is given.
2. ``leaves_open``: the call draws random numbers, or leaves memory as it found it.
3. ``masks``: the operand of an indexing operator that may hold masks, if it does.
4. ``tells``: the call hands numbers to Python, or gives a result whose shape depends on numbers.
5. ``functional``: the operator that makes anew what an operator like ``unsqueeze_`` does in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

READS_A_NUMBER = torch.ops.aten._local_scalar_dense.default
LITERALS = 4096  # elements of a literal tensor that are held against the original's
SCALARS = frozenset(("number", "Optional[number]", "Tensor", "Optional[Tensor]"))
MASKS = (torch.bool, torch.uint8)
INDEXES = frozenset(
    f"aten::{name}" for name in "index index_put index_put_ _index_put_impl_ _unsafe_index _unsafe_index_put".split()
)


def numbers(func: Any, args: Any, kwargs: Any) -> list[float]:
    """Clause 1."""
    if func._schema.name == "aten::lift_fresh":
        literal = args[0]
        known = literal.numel() <= LITERALS and literal.device.type != "meta" and not literal.is_complex()
        return [float(x) for x in literal.detach().reshape(-1).tolist()] if known else []
    found: list[float] = []
    for index, argument in enumerate(func._schema.arguments):
        given = args[index] if index < len(args) else kwargs.get(argument.name)
        if isinstance(given, float) or (type(given) is int and str(argument.type) in SCALARS):
            found.append(float(given))
        elif argument.name == "scale" and given is None and func._schema.arguments[0].name == "query":
            found.append(float(args[0].shape[-1] ** -0.5))
    return found


def leaves_open(func: Any) -> bool:
    """Clause 2."""
    return torch.Tag.nondeterministic_seeded in func.tags or "empty" in func._schema.name


def masks(func: Any, args: Any) -> list[Tensor | None]:
    """Clause 3: the indices of an indexing operator, if a mask is among them; else nothing."""
    if func._schema.name not in INDEXES or not any(isinstance(i, Tensor) and i.dtype in MASKS for i in args[1]):
        return []
    return list(args[1])


def tells(func: Any, args: Any) -> bool:
    """Clause 4."""
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags or bool(masks(func, args))


def functional(func: Any) -> Any:
    """Clause 5; the operator itself where there is no other."""
    if torch.Tag.inplace_view not in func.tags:
        return func
    packet = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").removesuffix("_"), None)
    return func if packet is None else getattr(packet, func._overloadname, func)
