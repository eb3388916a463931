"""Contractions: convolutions and matrix products.

1. Name each dimension of both operands by a label. Labels of both that are missing in the result are contracted.
2. A factor that varies along a contracted label is coupled with the other operand's factor there (elementwise, broadcasting
   over other labels) and ends. Where the other operand has none, it is pinned: there is nothing to slice.
3. A factor that varies only along outer labels is carried to the result; factors along a batch label of both are coupled. One that
   varies along a batch label and others (the channels of a head) is carried or ends likewise; its batch entries are blocks, each of which
   is left on both sides or on none. Where all its channels ended, the result carries the owners of the blocks.
4. A convolution contracts channels. Along a spatial dimension its input's factors must not vary: they are coupled along it
   (``smear``); what varies only along space is carried by a pointwise window and pinned otherwise.
5. A grouped convolution is block-diagonal: channel c = (block, j) of the input meets entry j in the rows of its block. A block keeps
   as many as its siblings, on either side, or goes as a whole on both.
6. Depthwise (one input channel per block, not only one that is left): the input channel and its outputs live and die together. With
   several outputs per input at least two inputs stay: a convolution with one group would be another kind of layer, with other couplings, in
   a second round.
7. Every contraction writes down its *index space*, one element per multiply-add (ledger.py, clause 8): a matrix product's is spanned by all
   its labels; a convolution's by batch, groups, outputs and inputs of a group, the positions of its window, and the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fxprune.provenance.factor import Ids, Value, along, compress, move_to, support
from fxprune.provenance.tracker import Rule, Tracker

BATCH = "a batch dimension of a product whose other operand cannot go there"
CONSTANT = "contracted with something that has no channels to remove (a constant, or the model's input)"


def contract(t: Tracker, a: Value, a_labels: str, b: Value, b_labels: str, out: str) -> list[Ids]:
    """Clauses 1 to 3; returns the factors of the result, whose dimensions are labelled ``out``."""
    labels = "".join(dict.fromkeys(a_labels + b_labels))
    inner = {x for x in a_labels if x in b_labels and x not in out}
    batch = {x for x in a_labels if x in b_labels and x in out}
    sides = []
    for value, own in ((a, a_labels), (b, b_labels)):
        places = [labels.index(x) for x in own]
        sides.append([move_to(ids, range(len(own)), places, len(labels)) for ids in value.factors])
    outer: list[Ids] = []
    for index, factors in enumerate(sides):
        for ids in factors:
            varied = {labels[d] for d in support(ids)}
            if varied <= batch:
                continue
            met = varied & inner
            if not met:
                outer.append(ids)
                if index == 1:
                    t.ledger.writes(ids)
                continue
            partners = [o for o in sides[1 - index] if met & {labels[d] for d in support(o)}]
            if index == 1:
                t.ledger.reads(ids)
            if not partners:
                t.ledger.pin(ids, CONSTANT)
            elif index == 0:
                for other in partners:
                    t.couple(ids, other)
    if batch:
        outer += _batches(
            t, sides, [labels.index(x) for x in labels if x in batch], [labels.index(x) for x in labels if x in inner]
        )
    source = [labels.index(x) for x in out]
    return [compress(move_to(ids, source, range(len(out)), len(out))) for ids in outer]


def _batches(t: Tracker, sides: list[list[Ids]], batch: list[int], inner: list[int]) -> list[Ids]:
    """Batch entries are left on both sides or on none (clause 3); returns what the result carries along the batch beside its blocks."""
    own = [[ids for ids in side if any(ids.shape[d] > 1 for d in batch)] for side in sides]
    thin, thick = [], []
    for index, side in enumerate(own):
        for ids in side:
            varied = support(ids)
            ends = any(d in inner for d in varied)
            if all(d in batch for d in varied):
                thin.append(ids)
            elif not (index == 1 and ends and any(o.shape == ids.shape for o in own[0])):  # coupled with the other side's
                thick.append((ids, ends))
    if not all(own):
        for ids in thin:
            t.ledger.pin(ids, BATCH)
        for ids, _ in thick:
            t.blocks(ids, batch, np.zeros((1,) * ids.ndim, np.int64))
        return []
    for ids in thin[1:]:
        t.couple(thin[0], ids)
    owner = thin[0] if thin else None
    for ids, _ in thick:
        owner = t.blocks(ids, batch, owner)
    return [] if owner is None or not all(ends for _, ends in thick) else [owner]


def multiply(t: Tracker, a: Value, a_labels: str, b: Value, b_labels: str, out: str) -> list[Ids]:
    """``contract``, and clause 7."""
    labels = "".join(dict.fromkeys(a_labels + b_labels))
    sizes = dict(zip(a_labels + b_labels, a.shape + b.shape, strict=True))
    factors = []
    for value, own in ((a, a_labels), (b, b_labels)):
        places = [labels.index(x) for x in own]
        factors += [move_to(ids, range(len(own)), places, len(labels)) for ids in value.factors]
    t.ledger.product(Value(tuple(sizes[x] for x in labels), tuple(factors)))
    return contract(t, a, a_labels, b, b_labels, out)


def mm(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    a, b = args
    factors = multiply(t, t.value(a), "ik", t.value(b), "kj", "ij")
    return t.new((a.shape[0], b.shape[1]), a, factors)


def addmm(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    bias, a, b = args
    shape = (a.shape[0], b.shape[1])
    product = Value(shape, tuple(multiply(t, t.value(a), "ik", t.value(b), "kj", "ij")))
    return t.new(shape, a, t.merge(shape, [product, t.value(bias)]))


def bmm(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    a, b = args
    factors = multiply(t, t.value(a), "bik", t.value(b), "bkj", "bij")
    return t.new((a.shape[0], a.shape[1], b.shape[2]), a, factors)


def baddbmm(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    bias, a, b = args
    shape = (a.shape[0], a.shape[1], b.shape[2])
    product = Value(shape, tuple(multiply(t, t.value(a), "bik", t.value(b), "bkj", "bij")))
    return t.new(shape, a, t.merge(shape, [product, t.value(bias)]))


def mv(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    a, b = args
    return t.new((a.shape[0],), a, contract(t, t.value(a), "ik", t.value(b), "k", "i"))


def dot(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    a, b = args
    return t.new((), a, contract(t, t.value(a), "k", t.value(b), "k", ""))


def linear(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    x, weight = args[0], args[1]
    lead = "abcdefgh"[: x.dim() - 1]
    shape = (*x.shape[:-1], weight.shape[0])
    factors = multiply(t, t.value(x), lead + "k", t.value(weight), "jk", lead + "j")
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    if bias is not None:
        factors = t.merge(shape, [Value(shape, tuple(factors)), t.value(bias)])
    return t.new(shape, x, factors)


def convolution(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Clauses 4 to 6: ``convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)``."""
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args
    spatial = weight.dim() - 2
    out_channels = weight.shape[1] * groups if transposed else weight.shape[0]
    window = [_pick(v, i) for i in range(spatial) for v in (stride, padding, dilation, output_padding)]
    shape = [x.shape[0], out_channels]
    for i in range(spatial):
        s, p, d, o = window[4 * i : 4 * i + 4]
        size, kernel = x.shape[2 + i], weight.shape[2 + i]
        if transposed:
            shape.append((size - 1) * s - 2 * p + d * (kernel - 1) + o + 1)
        else:
            shape.append((size + 2 * p - d * (kernel - 1) - 1) // s + 1)
    if min(shape[2:], default=1) < 0 or x.shape[1] != (weight.shape[0] if transposed else weight.shape[1] * groups):
        func(*args)  # the meta kernel words the complaint
    pointwise = [weight.shape[2 + i] == 1 and window[4 * i] == 1 and window[4 * i + 1] == 0 for i in range(spatial)]
    channel, carried = _input_factors(t, t.value(x), pointwise)
    source, target = _weight_factors(t, t.value(weight), transposed, groups)
    factors = carried
    out = _blocks(t, channel, source, target, groups, x.shape[1], out_channels)
    seen = x.shape[2:] if transposed else shape[2:]
    _index_space(
        t, (x.shape[0], groups, out_channels // groups, x.shape[1] // groups, *seen, *weight.shape[2:]), carried, source, target
    )
    if out is not None:
        factors = [*factors, along(out, 1, len(shape))]
    if bias is not None:
        aligned = Value((1, out_channels) + (1,) * spatial, tuple(along(ids, 1, len(shape)) for ids in t.value(bias).factors))
        factors = t.merge(shape, [Value(tuple(shape), tuple(factors)), aligned])
    return t.new(shape, x, factors)


def _index_space(t: Tracker, sizes: tuple[int, ...], carried: list[Ids], source: Ids | None, target: Ids | None) -> None:
    """Clause 7."""
    groups, per_out = sizes[1:3]
    spatial = (len(sizes) - 4) // 2
    inner = (1,) * (2 * spatial)
    factors = [ids.reshape(ids.shape[0], 1, 1, 1, *ids.shape[2:], *(1,) * spatial) for ids in carried]
    if target is not None:
        factors.append(target.reshape(1, groups, per_out, 1, *inner))
    if source is not None and source.size > 1:
        factors.append(source.reshape(1, -1, 1, source.shape[-1], *inner))
    t.ledger.product(Value(sizes, tuple(factors)))


def _pick(values: Sequence[int], i: int) -> int:
    return values[i] if i < len(values) else values[0]


def _input_factors(t: Tracker, value: Value, pointwise: Sequence[bool]) -> tuple[list[Ids], list[Ids]]:
    """The factors of the input along channels, as arrays (channels, rest), and those carried along other dimensions."""
    channel, carried = [], []
    for ids in value.factors:
        if ids.shape[1] > 1:
            channel.append(np.moveaxis(ids, 1, 0).reshape(ids.shape[1], -1))
        elif any(ids.shape[2 + i] > 1 and not free for i, free in enumerate(pointwise)):
            t.ledger.pin(ids, "varies along a dimension over which a convolution's window moves")
        else:
            carried.append(ids)
    return channel, carried


def _weight_factors(t: Tracker, value: Value, transposed: bool, groups: int) -> tuple[Ids | None, Ids | None]:
    """The weight's input-side ids as (groups or 1, rows or 1, inputs per group) and its output-side ids as (outputs,)."""
    source = target = None
    for ids in value.factors:
        dims = support(ids)
        if any(d >= 2 for d in dims):
            ids = t.smear(ids, [d for d in dims if d >= 2])
            dims = support(ids)
        if not dims:
            t.ledger.pin(ids, "varies along a convolution's window only")
            continue
        flat = ids.reshape(ids.shape[0], ids.shape[1])
        # Of blocks with one channel left each, the ids run along the rows like those of the rows themselves, which come first.
        blocked = dims == (0,) and (source if transposed else target) is not None and t.ledger.in_blocks()
        if dims == (0,) and not blocked:
            rows = flat[:, 0]
            source, target = (
                (_join(t, source, rows.reshape(groups, 1, -1)), target) if transposed else (source, _join(t, target, rows))
            )
            continue
        # The ids vary along dimension 1, in blocks of rows if the convolution is grouped.
        blocks = flat.reshape(groups, -1, flat.shape[1]) if flat.shape[0] > 1 else flat.reshape(1, 1, -1)
        if blocks.shape[1] > 1:
            if not bool((blocks == blocks[:, :1]).all()):
                t.couple(blocks, blocks[:, :1])
            blocks = blocks[:, :1]
        if not transposed:
            source = _join(t, source, blocks)
        else:
            target = _join(t, target, np.broadcast_to(blocks, (groups, 1, blocks.shape[2])).ravel())
    return source, target


def _join(t: Tracker, old: Ids | None, new: Ids) -> Ids:
    if old is not None:
        t.couple(old, new)
    return new


def _blocks(
    t: Tracker, channel: list[Ids], source: Ids | None, target: Ids | None, groups: int, ins: int, outs: int
) -> Ids | None:
    """Couple the input side (clauses 2, 5, 6) and return the ids of the output channels."""
    per_in, per_out = ins // groups, outs // groups
    if groups > 1 and per_in == 1 and not t.ledger.in_blocks():
        return _depthwise(t, channel, source, target, groups, per_out)
    if source is None and ins > 1:
        for ids in channel:
            t.ledger.pin(ids, CONSTANT)
    for ids in channel:
        if source is not None:
            t.couple(ids.reshape(groups, per_in, -1), source.transpose(0, 2, 1))
            t.ledger.reads(source)
    if not channel and source is not None:
        t.ledger.pin(source, CONSTANT)
        t.ledger.reads(source)
    if groups > 1:
        owner = None if channel and target is not None else np.zeros(groups, np.int64)
        for ids in channel:
            owner = t.ledger.block(ids[:, 0].reshape(groups, per_in), owner)
        if target is not None:
            t.ledger.block(target.reshape(groups, per_out), owner)
    return target


def _depthwise(t: Tracker, channel: list[Ids], source: Ids | None, target: Ids | None, groups: int, per_out: int) -> Ids | None:
    if per_out > 1 and target is not None:
        t.ledger.floor(target, 2 * per_out, "a depthwise convolution with a multiplier stays one")
    if source is not None:  # a transposed convolution has a row per input channel
        for ids in channel:
            t.couple(ids, source.reshape(groups, 1))
        if not channel:
            t.ledger.pin(source, CONSTANT)
    if target is None and per_out == 1 and source is not None:
        return source.ravel() if channel else None
    if target is None:
        for ids in channel:
            t.ledger.pin(ids, CONSTANT)
        return None
    if not channel:
        t.ledger.pin(target, "a depthwise convolution over channels that cannot go")
        return None
    for ids in channel:
        t.couple(ids[:, None, :], target.reshape(groups, per_out, 1))
    if source is not None:
        t.couple(source.reshape(groups, 1), target.reshape(groups, per_out))
    return target


RULES: dict[str, Rule] = {
    "mm": mm,
    "addmm": addmm,
    "bmm": bmm,
    "baddbmm": baddbmm,
    "mv": mv,
    "dot": dot,
    "vdot": dot,
    "linear": linear,
    "convolution": convolution,
    "_convolution": lambda t, func, args, kwargs: convolution(t, func, args[:9], kwargs),
}
