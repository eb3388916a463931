"""Indexing by tensors.

1. Where the index is known (a constant), the ids are indexed by it.
2. Where it is not, or where it stands in the code of a function that the program only calls (its numbers cannot follow what goes), factors
   that vary along an indexed dimension are pinned; the others do not care which index is taken.
3. Looking up rows (embedding) carries the columns' factor; rows cannot go.
4. Scattering keeps the destination's factors and couples the source's like an elementwise operator; factors along the scattered
   dimension are pinned.
5. Writing at positions (``x[index] = y``) keeps the destination's factors and couples those of what is written with them; factors along
   indexed dimensions are pinned. A mask of which only a run knows what it picks is no list of positions: it has no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.provenance.factor import Value, align, compress, overlaps, support
from fxprune.provenance.rules.movement import expanded
from fxprune.provenance.tracker import Rule, Tracker


def take(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``index``, ``index_select``, ``gather``, ``take_along_dim``: clauses 1 and 2."""
    x, rest = args[0], list(args[1:])
    value = t.value(x)
    dims = _indexed(func, x, rest)
    known = True
    numbers: list[Any] = []
    for arg in rest:
        items = arg if isinstance(arg, (list, tuple)) and any(isinstance(i, Tensor) for i in arg) else None
        found = [_number(t, i) for i in items] if items is not None else _number(t, arg)
        known &= (
            all(f is not None or i is None for f, i in zip(found, items, strict=True)) if items is not None else found is not None
        )
        numbers.append(found)
    result = func(*args, **kwargs)
    factors = []
    for ids in value.factors:
        if any(d in dims for d in support(ids)):
            if not known or not t.visible:
                t.ledger.pin(
                    ids, "indexed by numbers that only a run knows" if not known else "indexed by numbers inside a function"
                )
                continue
        elif not known:
            numbers = [_zeros(arg) for arg in rest]
        moved = compress(func(expanded(ids, value.shape), *numbers, **kwargs).numpy())
        t.ledger.part(moved, "0")
        factors.append(moved)
    t.bind(result, factors)
    t.fold(func, args, kwargs, result)
    return result


def _indexed(func: Any, x: Tensor, rest: list[Any]) -> set[int]:
    if isinstance(rest[0], int):
        return {rest[0] % max(x.dim(), 1)}
    dims: set[int] = set()
    place = 0
    for item in rest[0]:
        if item is None:
            place += 1
            continue
        width = item.dim() if item.dtype in (torch.bool, torch.uint8) else 1
        dims.update(range(place, place + width))
        place += width
    return dims


def _number(t: Tracker, arg: Any) -> Any:
    return t.constant(arg) if isinstance(arg, Tensor) else arg


def _zeros(arg: Any) -> Any:
    if isinstance(arg, Tensor):
        return torch.zeros(arg.shape, dtype=torch.int64, device="cpu")
    if isinstance(arg, (list, tuple)):
        return [_zeros(item) for item in arg]
    return arg


def embedding(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 3: ``embedding(weight, indices)``."""
    weight, indices = args[0], args[1]
    factors = []
    rank = indices.dim() + 1
    for ids in t.value(weight).factors:
        if support(ids) == (1,):
            t.ledger.writes(ids)
            factors.append(ids.reshape((1,) * (rank - 1) + (-1,)))
        else:
            t.ledger.pin(ids, "rows of a lookup table")
    return t.new((*indices.shape, weight.shape[1]), weight, factors)


def embedding_bag(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 3 for sums, means and maxima over bags of rows: ``_embedding_bag(weight, indices, offsets, ...)``."""
    result = func(*args, **kwargs)
    weight, *rest = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    for ids in (ids for x in rest for ids in t.value(x).factors):
        t.ledger.pin(ids, "indices, offsets or weights of a lookup")
    factors = []
    for ids in t.value(weight).factors:
        if support(ids) == (1,):
            factors.append(ids.reshape(1, -1))
        else:
            t.ledger.pin(ids, "rows of a lookup table")
    for item in result:  # the bags, and for maxima the rows they come from
        if item.dim() == 2 and item.shape[1] == weight.shape[1]:
            t.bind(item, factors)
    return result


def scatter(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 4: ``scatter(x, dim, index, src)`` and its kin."""
    x, dim = args[0], args[1] % max(args[0].dim(), 1)
    values = [t.value(a) for a in (x, *args[2:]) if isinstance(a, Tensor) and a.is_floating_point()]
    for value in values:
        for ids in value.factors:
            if dim in support(ids):
                t.ledger.pin(ids, "scattered along these channels")
    merged = t.merge(tuple(x.shape), values)
    if func._schema.is_mutable:
        return x
    return t.bind(func(*args, **kwargs), merged)


def put(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 5: ``index_put(x, indices, values)`` and its in-place form."""
    x, indices, written = args[:3]
    value, dims = t.value(x), _indexed(func, x, [indices])
    if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
        t.ledger.missing(func._schema.name, [ids for operand in (x, written) for ids in t.value(operand).factors])
        return x if func._schema.is_mutable else func(*args, **kwargs)
    region = torch.ops.aten.index.Tensor(torch.empty(value.shape, device="meta"), [_on_meta(i) for i in indices])
    anywhere = [None if i is None else torch.zeros((1,) * i.dim(), dtype=torch.int64, device="cpu") for i in indices]
    there, kept = [], []
    for ids in value.factors:
        if any(d in dims for d in support(ids)):
            t.ledger.pin(ids, "written to at positions along these channels")
        else:
            kept.append(ids)
            there.append(torch.ops.aten.index.Tensor(expanded(ids, ids.shape), anywhere).numpy())
    written_ids = [align(ids, region.dim()) for ids in t.value(written).factors]
    merged = t.merge(tuple(region.shape), [Value(tuple(region.shape), tuple(there)), t.value(written)])
    factors = []
    for own, seen in zip(kept, there, strict=True):
        # What was made to be written to (zeros) has the channels of what is written.
        if any(overlaps(seen, ids) for ids in merged):
            better = [ids for ids in written_ids if ids.size == seen.size and overlaps(ids, seen) and not t.ledger.is_fresh(ids)]
            factors.append(better[0].reshape(own.shape) if better and t.ledger.is_fresh(own) else own)
    return t.bind(x if func._schema.is_mutable else func(*args, **kwargs), factors)


def _on_meta(index: Tensor | None) -> Tensor | None:
    return None if index is None else torch.empty(index.shape, dtype=index.dtype, device="meta")


RULES: dict[str, Rule] = {
    **dict.fromkeys("index_put _index_put_impl _unsafe_index_put".split(), put),
    **dict.fromkeys("index index_select gather _unsafe_index take_along_dim".split(), take),
    "embedding": embedding,
    **dict.fromkeys(("_embedding_bag", "_embedding_bag_forward_only"), embedding_bag),
    **dict.fromkeys(
        "scatter scatter_ scatter_add scatter_add_ index_copy index_copy_ index_add index_add_ index_fill index_fill_".split(),
        scatter,
    ),
}
