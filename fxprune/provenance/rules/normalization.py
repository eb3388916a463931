"""Normalizations.

1. Batch norm is elementwise along dimension 1: gamma, beta and the running statistics are coupled with the input's channels.
2. Layer, group, instance and RMS norms mix: their statistics run over live elements only. They are elementwise in what they carry
   and in their affine parameters; the groups of a group norm are blocks: each keeps equally many channels, or goes.
3. Weight norm divides by a norm over live elements, at least one of which stays; its g is coupled with the dimension it scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.provenance.factor import Value, along, support
from fxprune.provenance.tracker import Rule, Tracker


def _per_channel(t: Tracker, tensors: Sequence[Any], rank: int) -> list[Value]:
    """One-dimensional parameters laid along dimension 1."""
    found = []
    for x in tensors:
        if isinstance(x, Tensor):
            value = t.value(x)
            shape = (1,) * min(1, rank - 1) + value.shape + (1,) * (rank - 2)
            found.append(Value(shape, tuple(along(ids, 1, rank) for ids in value.factors)))
    return found


def batch_norm(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 1. The first argument is the input; one-dimensional tensors after it are per channel."""
    x = args[0]
    value = t.value(x)
    params = [a for a in args[1:5] if isinstance(a, Tensor) and a.numel() > 0]
    if len(value.factors) == 1 and support(value.factors[0]) == (1,):
        own = value.factors[0].reshape(-1)
        found = [t.value(p).factors for p in params]
        if all(len(factors) == 1 for factors in found):
            for factors in found:
                t.couple(own, factors[0])
            out = t.new(x.shape, x, value.factors)
            rest = len(func._schema.returns) - 1
            return (out, *(torch.empty(0, dtype=x.dtype, device="meta") for _ in range(rest))) if rest else out
    out = t.new(x.shape, x, t.merge(value.shape, [value, *_per_channel(t, params, x.dim())]))
    rest = len(func._schema.returns) - 1
    return (out, *(torch.empty(0, dtype=x.dtype, device="meta") for _ in range(rest))) if rest else out


def layer_norm(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 2: ``(input, normalized_shape, weight, bias, eps)``."""
    x, normalized = args[0], args[1]
    if tuple(x.shape[x.dim() - len(normalized) :]) != tuple(normalized):
        return func(*args, **kwargs)
    values = [t.value(a) for a in (x, *args[2:4]) if isinstance(a, Tensor)]
    for ids in t.value(x).factors:
        t.count_in(ids)
    out = t.new(x.shape, x, t.merge(tuple(x.shape), values))
    rest = len(func._schema.returns) - 1
    return (out, *(torch.empty(0, dtype=x.dtype, device="meta") for _ in range(rest))) if rest else out


def group_norm(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 2: ``native_group_norm(input, weight, bias, n, c, hw, groups, eps)``."""
    x, groups = args[0], args[6]
    value = t.value(x)
    factors = t.merge(value.shape, [value, *_per_channel(t, args[1:3], x.dim())])
    for ids in factors:
        t.count_in(ids)
        if groups > 1 and ids.shape[1] > 1:
            t.ledger.block(ids.swapaxes(0, 1).reshape(ids.shape[1], -1)[:, 0].reshape(groups, -1))
    out = t.new(x.shape, x, factors)
    return out, torch.empty(0, dtype=x.dtype, device="meta"), torch.empty(0, dtype=x.dtype, device="meta")


def weight_norm(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 3: ``_weight_norm_interface(v, g, dim)``."""
    v, g = args[0], args[1]
    for ids in t.value(v).factors:
        if all(g.shape[d] == 1 for d in support(ids)):
            t.ledger.floor(ids, 1, "a norm over nothing has no direction")
    out = t.new(v.shape, v, t.merge(tuple(v.shape), [t.value(v), t.value(g)]))
    return out, torch.empty(g.shape, dtype=g.dtype, device="meta")


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        "native_batch_norm cudnn_batch_norm miopen_batch_norm batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
        "_batch_norm_with_update _batch_norm_no_update".split(),
        batch_norm,
    ),
    **dict.fromkeys("native_layer_norm layer_norm _fused_rms_norm rms_norm".split(), layer_norm),
    "native_group_norm": group_norm,
    "_weight_norm_interface": weight_norm,
}
