"""Reductions, and operators that work along one dimension.

1. A factor that does not vary along the reduced dimensions is carried.
2. A factor that varies only along reduced dimensions ends: the reduction runs over live elements.
3. A factor that varies along reduced and kept dimensions: if what is reduced is the last dimension and the reduction adds up
   (sum, mean, variance, norm), it ends (each run keeps its own elements) and the owners of the runs are carried; otherwise its atoms are
   coupled along what is reduced and it is carried (a maxout unit goes as a whole).
4. Operators whose result tells positions along a dimension (argmax, sort, cumsum, top-k) pin the factors that vary there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.provenance.factor import Ids, compress, support
from fxprune.provenance.tracker import Rule, Tracker

ADDS_UP = frozenset("sum mean var std var_mean std_mean norm linalg_vector_norm nansum logsumexp".split())


def _dims(func: Any, args: Sequence[Any], kwargs: dict[str, Any], rank: int) -> tuple[int, ...]:
    for index, argument in enumerate(func._schema.arguments):
        if argument.name == "dim":
            given = args[index] if index < len(args) else kwargs.get("dim")
            if given is None or given == []:
                break
            return tuple(d % max(rank, 1) for d in (given if isinstance(given, (list, tuple)) else (given,)))
    return tuple(range(rank))


def _drop(ids: Ids, dims: tuple[int, ...], keepdim: bool) -> Ids:
    return ids if keepdim else ids.reshape([s for d, s in enumerate(ids.shape) if d not in dims])


def _result(func: Any, args: Sequence[Any], kwargs: dict[str, Any], dims: tuple[int, ...]) -> Any:
    """The meta result; where it is plain, without torch's decomposition, which is slow."""
    name, x = func._schema.name, args[0]
    if name in ("aten::mean", "aten::sum", "aten::amax", "aten::amin") and x.is_floating_point() and not kwargs.get("dtype"):
        keepdim = bool(args[2]) if len(args) > 2 else bool(kwargs.get("keepdim", False))
        shape = (
            [1 if d in dims else s for d, s in enumerate(x.shape)]
            if keepdim
            else [s for d, s in enumerate(x.shape) if d not in dims]
        )
        return torch.empty(shape, dtype=x.dtype, device="meta")
    return func(*args, **kwargs)


def reduce(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clauses 1 to 3."""
    value = t.value(args[0])
    rank = len(value.shape)
    dims = _dims(func, args, kwargs, rank)
    result = _result(func, args, kwargs, dims)
    first = result if isinstance(result, Tensor) else result[0]
    keepdim = first.dim() == rank
    adds_up = func._schema.name.removeprefix("aten::") in ADDS_UP
    factors = []
    for ids in value.factors:
        varied = support(ids)
        reduced = [d for d in varied if d in dims]
        if reduced and func._schema.name not in ("aten::sum", "aten::nansum"):
            t.count_in(ids)
        if len(reduced) == len(varied):
            continue
        if reduced:
            own = adds_up and reduced == [rank - 1]
            ids = t.blocks(ids, [d for d in varied if d not in dims]) if own else t.smear(ids, reduced)
        factors.append(_drop(ids, dims, keepdim))
    for item in (result,) if isinstance(result, Tensor) else result:
        t.bind(item, factors)
    t.fold(func, args, kwargs, result)
    return result


def positions(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 4."""
    result = func(*args, **kwargs)
    value = t.value(args[0])
    rank = len(value.shape)
    named = any(a.name == "dim" for a in func._schema.arguments)
    dims = _dims(func, args, kwargs, rank) if named else tuple(range(rank))
    if (
        func._schema.name in ("aten::sort", "aten::topk", "aten::argsort", "aten::kthvalue", "aten::mode", "aten::median")
        and len(dims) == rank
    ):
        dims = (rank - 1,)
    factors = []
    for ids in value.factors:
        if any(d in dims for d in support(ids)):
            t.ledger.pin(ids, f"{func._schema.name} tells positions along these channels")
        else:
            factors.append(ids)
    for item in (result,) if isinstance(result, Tensor) else result:
        same = item.dim() == rank
        t.bind(item, factors if same else [_drop(ids, dims, False) for ids in factors])
    t.fold(func, args, kwargs, result)
    return result


def cosine(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Pairwise products that are added up along one dimension: elementwise, then reduced."""
    result = func(*args, **kwargs)
    a, b = t.value(args[0]), t.value(args[1])
    shape = np.broadcast_shapes(a.shape, b.shape)
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 1)) % len(shape)
    factors = []
    for ids in t.merge(shape, [a, b]):
        kept = [d for d in support(ids) if d != dim]
        if kept:
            factors.append(ids if dim not in support(ids) else t.blocks(ids, kept) if kept[-1] < dim else t.smear(ids, [dim]))
    return t.bind(result, [compress(_drop(ids, (dim,), False)) for ids in factors])


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        "sum mean var std var_mean std_mean norm linalg_vector_norm nansum logsumexp amax amin prod all any aminmax "
        "count_nonzero".split(),
        reduce,
    ),
    **dict.fromkeys(
        "argmax argmin sort topk argsort kthvalue median mode cumsum cumprod cummax cummin logcumsumexp cumsum_".split(),
        positions,
    ),
    "cosine_similarity": cosine,
}


def _extremum(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``max``/``min``: of all elements, along a dimension (with positions), or elementwise of two tensors."""
    if len(args) > 1 and isinstance(args[1], Tensor):
        result = func(*args, **kwargs)
        return t.bind(result, t.merge(tuple(result.shape), [t.value(args[0]), t.value(args[1])]))
    return reduce(t, func, args, kwargs)


RULES["max"] = RULES["min"] = _extremum
