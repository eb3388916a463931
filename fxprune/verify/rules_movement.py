"""Data movement: run the same operator on the mask.

1. Every operator whose schema returns a view or an alias comes here by its schema; the names below move or copy elements too.
   ``unsqueeze_``, ``transpose_`` and the like come here by their tag: they turn the value into a view of itself.
2. ``view`` becomes ``reshape`` on masks, which have other strides than their values.
3. ``expand`` leaves its stride 0 behind, by which pointwise operators know a broadcast operand (clause 4 of ``existence``).
4. Padding is wild where the row it extends exists and dead where it does not. Freshly filled constants and noise are
   wild.
5. Indices are values of their own and must exist in full.
6. ``index_put`` and the scatters write: what they write must agree with what stands there (clause 4 of ``existence``).
7. ``as_strided`` reads the mask as it lies in storage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxprune.verify.call import Call, rule, tensors
from fxprune.verify.existence import (
    ALIVE,
    WILD,
    from_storage,
    full,
    has_dead,
    in_storage,
    mark,
    mask_of,
    meet,
    no_semantics,
    uniform,
)

MOVEMENTS = (
    *("stack", "roll", "flip", "repeat", "repeat_interleave", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
    *("unfold", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "rot90", "native_channel_shuffle"),
    *("index_select", "index", "take", "take_along_dim", "diagonal_copy", "slice_copy", "_unsafe_index"),
)
RESHAPES = ("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
UNWRITTEN = ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
SOURCES = (
    *("zeros", "ones", "full", "empty", "empty_strided", "empty_permuted", "rand", "randn"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
)


@rule(*MOVEMENTS)
def move(call: Call) -> Any:
    """Clauses 1 and 5: the first tensor argument (or list of them) moves, every other tensor is an index."""
    moving, *others = call.arguments.items()
    name, value = moving
    if any(has_dead(mask_of(t)) for _, argument in others for t in tensors(argument)):
        raise no_semantics(call.name, "its indices vary with the removed channels")
    result = call.run()
    masks = [full(mask_of(t), t) for t in value] if isinstance(value, (list, tuple)) else full(mask_of(value), value)
    try:
        moved = call.run(**{name: masks})
    except RuntimeError:  # some kernels know no int8
        moved = call.run(**{name: [m.double() for m in masks] if isinstance(masks, list) else masks.double()})
    for out, mask in zip(tensors(result), tensors(moved), strict=True):
        mark(out, mask)
    return result


def move_in_place(call: Call) -> Any:
    """Clause 1."""
    states = full(mask_of(call["self"]), call["self"])
    moved: Tensor = call.run(self=states)
    return mark(call.run(), moved)


@rule(*RESHAPES)
def reshape(call: Call) -> Tensor:
    """Clause 2."""
    if call.get("size", "shape") is None:
        raise no_semantics(f"{call.name} to another dtype")
    result: Tensor = call.run()
    return mark(result, full(mask_of(call["self"]), call["self"]).reshape(result.shape))


@rule("as_strided")
def as_strided(call: Call) -> Tensor:
    """Clause 7."""
    states = in_storage([call["self"]])
    result: Tensor = call.run()
    return mark(result, from_storage(states, result).clone())


@rule("view_as_real", "view_as_complex", "set", "resize", "resize_as")
def opaque(call: Call) -> Any:
    """Strides of the value say nothing about its mask."""
    if not call.removed:
        return call.run()
    raise no_semantics(call.name, "it reinterprets memory")


@rule("expand", "expand_copy")
def expand(call: Call) -> Tensor:
    """Clause 3."""
    mask = mask_of(call["self"])
    result: Tensor = call.run()
    return mark(result, None if mask is None else mask.reshape((1,) * (result.ndim - mask.ndim) + tuple(mask.shape)))


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> Tensor:
    """Clause 1, with masks expanded only where one of them varies: a DenseNet concatenates channels, not pixels."""
    result: Tensor = call.run()
    dim = call["dim"] % max(1, result.ndim)
    parts = [t for t in call["tensors"] if t.ndim == result.ndim]
    masks = [m if (m := mask_of(t)) is not None else full(None, t).as_strided((1,) * t.ndim, (1,) * t.ndim) for t in parts]
    shape = [max([1, *(m.shape[d] for m in masks)]) for d in range(result.ndim)]
    sized = [m.expand([t.shape[d] if d == dim else shape[d] for d in range(t.ndim)]) for m, t in zip(masks, parts, strict=True)]
    return mark(result, torch.cat(sized, dim))


@rule("constant_pad_nd")
def pad(call: Call) -> Tensor:
    """Clause 4."""
    value: Tensor = call["self"]
    result: Tensor = call.run()
    mask, lengths = mask_of(value), call["pad"]
    mask = uniform(ALIVE, value.ndim, value.device) if mask is None else mask
    for i in range(len(lengths) // 2):
        dim = value.ndim - 1 - i
        before, after = lengths[2 * i : 2 * i + 2]
        body = mask.expand([value.shape[d] if d == dim else mask.shape[d] for d in range(mask.ndim)])
        body = body.narrow(dim, max(0, -before), body.shape[dim] + min(0, before) + min(0, after))
        edge = torch.clamp(mask.amax(dim, keepdim=True), max=WILD)
        sides = [edge.expand([max(0, n) if d == dim else mask.shape[d] for d in range(mask.ndim)]) for n in (before, after)]
        mask = torch.cat([sides[0], body, sides[1]], dim) if before or after else mask
    return mark(result, mask)


@rule(*SOURCES)
def source(call: Call) -> Tensor:
    """Clause 4."""
    result: Tensor = call.run()
    return mark(result, uniform(WILD, result.ndim, result.device)) if result.ndim else result


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(call: Call) -> Tensor:
    """Clause 6."""
    value, written, indices = call["self"], call["values"], call["indices"]
    if any(has_dead(mask_of(t)) for t in tensors(indices)):
        raise no_semantics(call.name, "its indices vary with the removed channels")
    before = full(mask_of(value), value)
    there = before[tuple(slice(None) if i is None else i for i in indices)]
    agreed = meet([(there, there.shape), (mask_of(written), written.shape)])
    states = full(agreed, there)
    return mark(call.run(), torch.ops.aten.index_put(before.contiguous(), indices, states.contiguous()))


@rule("slice_scatter", "select_scatter")
def scatter_part(call: Call) -> Tensor:
    """Clause 6."""
    value, written = call["self"], call["src"]
    before = full(mask_of(value), value)
    place = getattr(torch.ops.aten, call.name.replace("_scatter", ""))
    where = {n: v for n, v in call.arguments.items() if n not in ("self", "src")}
    there = place(before, **where)
    agreed = meet([(there, there.shape), (mask_of(written), written.shape)])
    return mark(call.run(), call.run(self=before.contiguous(), src=full(agreed, there).contiguous()))
