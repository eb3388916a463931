"""Reductions, scans and softmaxes: over the elements that exist.

1. A result exists iff one of the elements it is made of does; wild elements count as existing.
2. Where existence does not vary along the reduced dimensions the operator runs as it is.
3. Otherwise dead elements are replaced by the neutral element, and means and variances divide by the number that exist.
4. Scans keep their operand's mask. A softmax puts minus infinity in dead places.
5. Positions (argmax, sort, topk) have no meaning across dead elements. Those that ``max`` and ``min`` give beside their values
   are unknown (clause 6 of ``existence``).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxprune.verify.call import Call, dims_of, mark_all, rule, zeroed
from fxprune.verify.existence import Mask, exists, full, mark, mark_unknown, mask_of, no_semantics

NEUTRAL = {
    **dict.fromkeys(("sum", "nansum", "cumsum", "count_nonzero", "any"), 0.0),
    **dict.fromkeys(("prod", "cumprod", "all"), 1.0),
    **dict.fromkeys(("amax", "max", "logsumexp", "logcumsumexp", "_softmax", "_log_softmax", "_safe_softmax"), -math.inf),
    **dict.fromkeys(("amin", "min"), math.inf),
}


def reduced(call: Call, value: Tensor, dims: list[int]) -> Mask:
    """The mask of the result (clause 1)."""
    mask = mask_of(value)
    if mask is None or not dims:
        return mask
    keepdim = bool(call.get("keepdim"))
    return mask.amax(dims, keepdim=keepdim) if keepdim or len(dims) < value.ndim else mask.amax()


def varies(mask: Mask, dims: list[int]) -> bool:
    """True if existence varies along these dimensions."""
    return mask is not None and any(mask.shape[d] > 1 for d in dims)


@rule(
    *("sum", "nansum", "prod", "amax", "amin", "max", "min", "logsumexp", "any", "all", "count_nonzero"),
    *("argmax", "argmin", "median", "nanmedian", "mode", "kthvalue"),
)
def reduce(call: Call) -> Any:
    """Clauses 2, 3 and 5; ``max`` of two tensors is pointwise and arrives as ``maximum``."""
    value: Tensor = call["self"]
    dims = list(dims_of(call, value))
    out = reduced(call, value, dims)
    if not call.removed or not varies(mask_of(value), dims):
        return mark_all(call.run(), out)
    if call.name not in NEUTRAL:
        raise no_semantics(call.name, "positions have no meaning across removed channels")
    result = call.run(self=zeroed(value, NEUTRAL[call.name]))
    for where in () if isinstance(result, Tensor) else result[1:]:
        mark_unknown(where)
    return mark_all(result, out)


@rule("aminmax", "_aminmax")
def extremes(call: Call) -> Any:
    """Clauses 2 and 3, once for each of the two."""
    value: Tensor = call["self"]
    low, high = (call.run(self=zeroed(value, NEUTRAL[name]))[i] for i, name in enumerate(("amin", "amax")))
    return mark_all((low, high), reduced(call, value, list(dims_of(call, value))))


@rule("mean", "var", "std", "var_mean", "std_mean")
def moments(call: Call) -> Any:
    """Clauses 2 and 3."""
    value: Tensor = call["self"]
    dims = list(dims_of(call, value))
    out, mask = reduced(call, value, dims), mask_of(value)
    if mask is None or not call.removed or not varies(mask, dims):
        return mark_all(call.run(), out)
    keepdim = bool(call.get("keepdim"))
    mean, variance = live_moments(value, mask, dims, float(call.arguments.get("correction", 0) or 0))
    if "correction" in call.arguments and call["correction"] is None:
        mean, variance = live_moments(value, mask, dims, 1.0)
    if not keepdim:
        kept = [value.shape[d] for d in range(value.ndim) if d not in dims]
        mean, variance = mean.reshape(kept), variance.reshape(kept)
    spread = variance.sqrt() if call.name.startswith("std") else variance
    results: dict[str, Any] = {"mean": mean, "var": spread, "std": spread}
    return mark_all(results.get(call.name, (spread, mean)), out)


def live_moments(value: Tensor, mask: Tensor, dims: list[int], correction: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean and variance over the elements that exist; reduced dimensions stay with size 1."""
    alive = exists(full(mask, value))
    count = alive.sum(dims, keepdim=True).to(value.dtype)
    mean = torch.where(alive, value, 0.0).sum(dims, keepdim=True) / count.clamp(min=1)
    squares = torch.where(alive, value - mean, 0.0).square().sum(dims, keepdim=True)
    return mean, squares / (count - correction).clamp(min=1)


@rule("linalg_vector_norm", "norm")
def norm(call: Call) -> Tensor:
    """Clause 3: dead elements are zero for the norms of order >= 0."""
    value: Tensor = call["self"]
    dims = list(dims_of(call, value))
    order = call.get("ord", "p")
    if (2 if order is None else order) < 0 and varies(mask_of(value), dims):
        raise no_semantics(call.name, "a norm of negative order")
    return mark(call.run(self=zeroed(value)), reduced(call, value, dims))


@rule("cumsum", "cumprod", "logcumsumexp", "_softmax", "_log_softmax", "_safe_softmax")
def scan(call: Call) -> Tensor:
    """Clause 4."""
    value: Tensor = call["self"]
    return mark(call.run(self=zeroed(value, NEUTRAL[call.name])), mask_of(value))


@rule("sort", "topk", "argsort", "cummax", "cummin")
def positions(call: Call) -> Any:
    """Clause 5."""
    value: Tensor = call["self"]
    dims = list(dims_of(call, value)) if "dim" in call.arguments else [value.ndim - 1]
    if call.removed and varies(mask_of(value), dims):
        raise no_semantics(call.name, "positions have no meaning across removed channels")
    result = call.run()
    return mark_all(result, mask_of(value))
