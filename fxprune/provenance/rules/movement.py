"""Data movement: run the same operator on the id tensors.

1. A view or a copy that only moves elements moves their ids: the operator itself is run on ids expanded to the value's shape.
2. A reshape that lays a run of channels out in more dimensions than before records a ``split``.
3. Taking a strict part of a run of channels records a ``part`` (channels of different parts are different kinds).
4. Concatenation joins ids along its dimension; across it, factors of the operands are coupled: a box has one width. An operand
   without a factor there pins the others' (what it holds cannot go).
5. Dimensions that ``expand`` makes, and elements that constant padding adds along a channel dimension, are fresh atoms without a
   producer: they go exactly when what they meet goes. Merged with other channels by a reshape, they stay.
6. A part without elements (no prefix tokens) still has its channels along the other dimensions: what it is joined with has as many.
7. ``as_strided`` is no data movement by this rule: its strides are those of the data, not of the ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.provenance.factor import Ids, align, along, compress, overlaps, reshape, segments, support
from fxprune.provenance.tracker import Rule, Tracker

TAKES_PARTS = frozenset(f"aten::{name}" for name in "slice select split split_with_sizes unbind narrow unsafe_split".split())


def expanded(ids: Ids, shape: Sequence[int]) -> Tensor:
    """Ids as a tensor of the value's shape; stride 0 where they do not vary."""
    if not ids.flags.writeable:
        ids = ids.copy()
    return torch.from_numpy(ids).expand(tuple(shape))


def generic(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 1, for operators whose first argument is the only tensor; one or several results."""
    result = func(*args, **kwargs)
    value = t.value(args[0])
    if func._schema.name not in TAKES_PARTS and any(len(support(ids)) > 1 for ids in value.factors):
        t.ledger.interleave()
    many = isinstance(result, (list, tuple))
    outs: list[list[Ids]] = [[] for _ in (result if many else (result,))]
    for ids in value.factors:
        moved = func(expanded(ids, value.shape), *args[1:], **kwargs)
        for out, item in zip(outs, moved if many else (moved,), strict=True):
            out.append(compress(item.numpy()) if item.numel() else _of_nothing(ids, item))
    for index, (item, factors) in enumerate(zip(result if many else (result,), outs, strict=True)):
        for old, ids in zip(value.factors, factors, strict=True):
            if ids.size < old.size:
                t.ledger.part(ids, str(index))
        t.bind(item, factors)
        t.fold(func, args, kwargs, item)
    return result


def _of_nothing(ids: Ids, moved: Tensor) -> Ids:
    """Clause 6: the factor of a result without elements, which is as wide as before along the dimensions that are left."""
    copied = moved.untyped_storage().nbytes() == 0
    if copied or moved.dim() != ids.ndim or any(size == 0 and ids.shape[d] > 1 for d, size in enumerate(moved.shape)):
        return np.zeros((1,) * moved.dim(), np.int64)
    first = moved.as_strided([max(size, 1) for size in moved.shape], moved.stride(), moved.storage_offset())
    return compress(first.numpy())


def view(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 2."""
    result = func(*args, **kwargs)
    if func._schema.is_mutable:
        result = args[0]
    value, shape = t.value(args[0]), tuple(result.shape)
    factors = []
    for ids in value.factors:
        moved = reshape(ids, value.shape, shape)
        if _splits(ids, moved, value.shape, shape):
            t.ledger.split(moved)
        factors.append(moved)
    t.bind(result, _without_stray(t, factors))
    t.fold(func, args, kwargs, result)
    return result


def _without_stray(t: Tracker, factors: list[Ids]) -> list[Ids]:
    """Clause 5: atoms without a producer that a reshape lays over other channels cannot go by themselves."""
    kept = []
    for i, ids in enumerate(factors):
        others = factors[:i] + factors[i + 1 :]
        if ids.size > 1 and t.ledger.is_fresh(ids) and any(overlaps(ids, other) for other in others):
            t.ledger.pin(ids, "expanded, then merged with other channels")
        else:
            kept.append(ids)
    return kept


def _splits(ids: Ids, moved: Ids, old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """True if some run of channels is laid out along several dimensions (clause 2)."""
    if len(support(moved)) < 2 or 0 in old:
        return False
    return any(
        sum(moved.shape[d] > 1 for d in outs) > 1 and sum(ids.shape[d] > 1 for d in ins) > 0
        for ins, outs in segments(old, new)
        if not (len(ins) == len(outs) == 1)
    )


def permute(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    value = t.value(args[0])
    result = func(*args, **kwargs)
    if func._schema.is_mutable:
        result = args[0]
    rank = len(value.shape)
    name = func._schema.name.removesuffix("_")
    if rank < 2:
        order = list(range(rank))
    elif name == "aten::t":
        order = [1, 0]
    elif name == "aten::transpose":
        order = list(range(rank))
        a, b = args[1] % rank, args[2] % rank
        order[a], order[b] = b, a
    else:
        order = [d % rank for d in args[1]]
    for ids in value.factors:
        varied = [order.index(d) for d in support(ids)]
        if varied != sorted(varied):
            t.ledger.interleave()
    t.bind(result, [ids.transpose(order) for ids in value.factors])
    t.fold(func, args, kwargs, result)
    return result


def expand(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 5: a dimension made by expansion has fresh atoms."""
    result = func(*args, **kwargs)
    value, rank = t.value(args[0]), result.dim()
    factors = [align(ids, rank) for ids in value.factors]
    old = (1,) * (rank - len(value.shape)) + value.shape
    if result.is_floating_point():
        grown = [dim for dim in range(rank) if old[dim] == 1 and result.shape[dim] > 1]
        factors += [along(t.expanded(result.shape[dim]), dim, rank) for dim in grown]
    t.bind(result, factors)
    t.fold(func, args, kwargs, result)
    return result


def cat(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 4."""
    operands = [x for x in args[0] if x.dim() > 1 or x.numel() > 0] or list(args[0][:1])
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    rank = operands[0].dim()
    dim %= rank
    sizes = list(operands[0].shape)
    sizes[dim] = sum(x.shape[dim] for x in operands)
    same = all(x.dtype == operands[0].dtype for x in operands)
    result = torch.empty(sizes, dtype=operands[0].dtype, device="meta") if same else func(*args, **kwargs)
    values = [t.value(x) for x in operands]
    across = [[ids for ids in value.factors if ids.shape[dim] == 1] for value in values]
    joined = [[ids for ids in value.factors if ids.shape[dim] > 1] for value in values]
    # A run of length 1 along the joined dimension has no factor there; it cannot go.
    factors = _couple_across(t, across)
    for slot in range(max(map(len, joined), default=0)):
        runs = [own[slot] if slot < len(own) else np.zeros((1,) * rank, np.int64) for own in joined]
        width = [max(run.shape[d] for run in runs) for d in range(rank)]
        parts = []
        for run, value in zip(runs, values, strict=True):
            width[dim] = value.shape[dim]
            parts.append(np.broadcast_to(run, width))
        factors.append(compress(np.concatenate(parts, axis=dim)))
    t.bind(result, factors)
    t.fold(func, args, kwargs, result)
    return result


def _couple_across(t: Tracker, across: list[list[Ids]]) -> list[Ids]:
    kept: list[Ids] = []
    for own in across:
        for ids in own:
            clash = next((other for other in kept if overlaps(other, ids)), None)
            if clash is None:
                kept.append(ids)
            else:
                t.couple(clash, ids)
    free = []
    for ids in kept:
        if all(any(overlaps(ids, other) for other in own) for own in across):
            free.append(ids)
        else:
            t.ledger.pin(ids, "concatenated, across its channels, with something whose channels cannot go")
    return free


def stack(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    result = func(*args, **kwargs)
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.dim()
    across = [[np.expand_dims(ids, dim) for ids in t.value(x).factors] for x in args[0]]
    t.bind(result, _couple_across(t, across))
    t.fold(func, args, kwargs, result)
    return result


def constant_pad(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 5."""
    result = func(*args, **kwargs)
    value, pads = t.value(args[0]), args[1]
    rank = len(value.shape)
    factors = []
    for ids in value.factors:
        for i in range(len(pads) // 2):
            dim = rank - 1 - i
            if ids.shape[dim] > 1:
                ids = _padded(t, ids, dim, pads[2 * i], pads[2 * i + 1])
        factors.append(compress(ids))
    t.bind(result, factors)
    return result


def _padded(t: Tracker, ids: Ids, dim: int, before: int, after: int) -> Ids:
    keep = slice(max(0, -before), ids.shape[dim] - max(0, -after))
    cut = ids[(slice(None),) * dim + (keep,)]
    runs = [cut]
    for count, position in ((before, 0), (after, 1)):
        if count > 0:
            fresh = along(t.ledger.fresh(count), dim, ids.ndim)
            width = [*cut.shape]
            width[dim] = count
            runs.insert(position * len(runs), np.broadcast_to(fresh, width))
    return np.concatenate(runs, axis=dim)


def glu(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A gated linear unit halves a dimension: position j of both halves is coupled."""
    result = func(*args, **kwargs)
    value = t.value(args[0])
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", -1)) % len(value.shape)
    factors = []
    for ids in value.factors:
        if ids.shape[dim] > 1:
            first, second = np.split(ids, 2, axis=dim)
            t.couple(first, second)
            factors.append(compress(first))
        else:
            factors.append(ids)
    return t.bind(result, factors)


def restride(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 7, except where only the memory format changes (a shape that stays what it was)."""
    if tuple(args[1]) == tuple(args[0].shape):
        return args[0]
    t.ledger.missing(func._schema.name, list(t.value(args[0]).factors))
    func(*args, **kwargs)
    return t.bind(args[0], ())


def shuffle(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Channel shuffle, pixel shuffle and unshuffle, whose inner reshape splits runs of channels."""
    value = t.value(args[0])
    name = func._schema.name
    t.ledger.interleave()
    if name in ("aten::channel_shuffle", "aten::native_channel_shuffle"):
        groups, channels = args[1], value.shape[1]
        for ids in value.factors:
            if ids.shape[1] > 1:
                rows = ids.swapaxes(0, 1).reshape(channels, -1)[:, 0].reshape(groups, -1)
                t.ledger.block(rows, np.zeros(groups, np.int64))
    else:
        # Pixels of one channel go together: the operator fixes how many there are.
        rank, factor = len(value.shape), int(args[1])
        factors = []
        for ids in value.factors:
            if name == "aten::pixel_unshuffle":
                ids = t.smear(ids, (rank - 2, rank - 1))
            elif ids.shape[rank - 3] > 1:
                shape = (*ids.shape[: rank - 3], -1, factor * factor, *ids.shape[rank - 2 :])
                blocks = ids.reshape(shape)
                first = blocks.take([0], axis=rank - 2)
                t.couple(blocks, first)
                ids = np.broadcast_to(first, blocks.shape).reshape(ids.shape)
            factors.append(ids)
        t.bind(args[0], factors)
    return generic(t, func, args, kwargs)


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        "view reshape _unsafe_view unflatten flatten _reshape_alias squeeze unsqueeze squeeze_ unsqueeze_".split(), view
    ),
    **dict.fromkeys("permute transpose t".split(), permute),
    **dict.fromkeys("expand broadcast_to".split(), expand),
    **dict.fromkeys("cat concat concatenate".split(), cat),
    "stack": stack,
    "constant_pad_nd": constant_pad,
    "glu": glu,
    "as_strided_": restride,
    **dict.fromkeys("channel_shuffle native_channel_shuffle pixel_shuffle pixel_unshuffle".split(), shuffle),
    **dict.fromkeys(
        (
            "flip roll repeat rot90 slice select narrow split split_with_sizes unbind chunk unsafe_split unsafe_chunk "
            "unsafe_split_with_sizes unfold diagonal movedim tile"
        ).split(),
        generic,
    ),
}
