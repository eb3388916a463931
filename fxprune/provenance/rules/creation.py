"""Tensors that come from nowhere.

1. A tensor filled with one number (zeros, ones, full) or with noise has fresh atoms along every dimension: it is as wide as
   what it meets, and its literal size is patched.
2. Other constants (arange, eye, scalars) have no factors; integer ones keep their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fxprune.provenance.factor import along
from fxprune.provenance.rules.pointwise import identity
from fxprune.provenance.tracker import Rule, Tracker


def constant(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 2."""
    result = func(*args, **{**kwargs, "device": "meta"} if "device" in kwargs or _takes_device(func) else kwargs)
    if isinstance(result, torch.Tensor):
        t.bind(result, ())
        t.fold(func, args, kwargs, result)
    return result


def filled(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 1."""
    result = func(*args, **{**kwargs, "device": "meta"})
    rank = result.dim()
    if result.is_floating_point():
        t.bind(result, [along(t.ledger.fresh(size), dim, rank) for dim, size in enumerate(result.shape) if size > 1])
    else:
        t.bind(result, ())
        if not any(isinstance(arg, torch.Tensor) for arg in args):
            t.fold(func, args, kwargs, result)
    return result


def _takes_device(func: Any) -> bool:
    return any(argument.name == "device" for argument in func._schema.arguments)


RULES: dict[str, Rule] = {
    **dict.fromkeys("zeros ones full empty new_zeros new_ones new_full new_empty rand randn".split(), filled),
    **dict.fromkeys("arange linspace eye scalar_tensor tensor empty_strided randint randperm".split(), constant),
    "_efficientzerotensor": constant,
    "_resize_output_": identity,
}
