"""Contractions: convolutions and matrix products.

1. Operands are multiplied by their masks first (by selection, so that NaN in dead places does not leak).
2. A side ``(batch, row, k)`` must be an outer product of existing rows and existing k within each batch entry; anything else is
   ragged in the contraction.
3. The two sides must agree on which k exist; wild agrees with everything. In the *selection* layout a parameter may drop some of
   the k that arrive; it may never use one that does not exist.
4. A row exists iff one of its elements does. Where no k exists anywhere the rows cannot be told: they are wild and hold zeros.
5. An element of the result exists iff its row and its column do; a bias must agree with them (clause 4 of ``existence``).
6. A convolution contracts channels: existence must not vary over space (padding there is wild), but whole places of the batch, or
   of a dimension in which the kernel is a single point, may be dead and stay so. Its weight is read as ``(group, row, k)``, also
   when transposed, and compared with the arriving channels ``(group, k)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.errors import VerificationError
from fxprune.verify.call import Call, rule, zeroed
from fxprune.verify.existence import (
    ALIVE,
    DEAD,
    WILD,
    Mask,
    disagreement,
    exists,
    extent,
    full,
    join,
    mark,
    mask_of,
    meet,
    no_semantics,
    uniform,
)


def channel_states(value: Tensor, dim: int, name: str) -> Tensor:
    """The states ``(channels,)`` of a value whose existence varies along one dimension only (clause 6)."""
    mask = mask_of(value)
    size = value.shape[dim]
    if value.numel() == 0:  # a value without elements (a batch of nothing) agrees with everything
        return uniform(WILD, 1, value.device).expand(size)
    if mask is None:
        return uniform(ALIVE, 1, value.device).expand(size)
    rows = mask.movedim(dim, 0).reshape(mask.shape[dim], -1)
    high = rows.amax(1)
    if bool(((rows == DEAD) & (high == ALIVE).unsqueeze(1)).any()):
        raise no_semantics(name, f"existence varies along other dimensions than {dim}")
    return high.expand(size)


def rows_of(side: Tensor, k: Tensor) -> Tensor:
    """Existing rows ``(..., row)`` of a side ``(..., row, k)`` whose existing k are known (clauses 2 and 4)."""
    rows = side.amax(-1)
    product = join(rows.unsqueeze(-1), k.unsqueeze(-2))
    if product is not None and bool(((side == DEAD) & (product == ALIVE)).any()):
        raise VerificationError(
            "the plan is ragged in a contraction: rows of one operand have different elements",
            expected="the same contracted elements in every row",
            got="rows that differ",
        )
    return rows if bool(exists(k).any()) else torch.full_like(rows, WILD)


def agree(left: Tensor, right: Tensor, drops: bool = False) -> None:
    """Clause 3, elementwise; ``drops``: the right side may drop what the left one has."""
    apart = (left == DEAD) & (right == ALIVE)
    if not drops:
        apart = apart | ((left == ALIVE) & (right == DEAD))
    if bool(apart.any()):
        raise disagreement(int(apart.sum()), "two sides of a contraction")


def product_mask(call: Call, left: Tensor, right: Tensor) -> Mask:
    """The mask of ``left @ right``, both with at least two dimensions (clauses 2 to 5)."""
    if (mask_of(left) is None and mask_of(right) is None) or not left.numel() or not right.numel():
        return None
    a, b = (uniform(ALIVE, t.ndim, t.device) if (m := mask_of(t)) is None else m for t in (left, right))
    ka, kb = a.amax(-2), b.amax(-1)
    agree(ka, kb, drops=call.selection)
    rows, columns = rows_of(a, ka), rows_of(b.mT, kb)
    return join(rows.unsqueeze(-1), columns.unsqueeze(-2))


@rule("mm", "bmm", "matmul")
def matmul(call: Call) -> Tensor:
    """Products of matrices."""
    left, right = call["self"], call.get("mat2", "other")
    if left.ndim < 2 or right.ndim < 2:
        raise no_semantics(call.name, "a vector operand")
    other = "mat2" if "mat2" in call.arguments else "other"
    return mark(call.run(**{"self": zeroed(left), other: zeroed(right)}), product_mask(call, left, right))


@rule("mv", "dot", "vdot")
def vector(call: Call) -> Tensor:
    """Products with a vector are products with a matrix of one column."""
    left, right = call["self"], call.get("vec", "other", "tensor")
    if left.ndim == 1:
        result: Tensor = call.again(lambda: (left.unsqueeze(0) @ right.unsqueeze(1)).reshape(()))
    else:
        result = call.again(lambda: (left @ right.unsqueeze(1)).squeeze(1))
    return result


@rule("addmm", "baddbmm")
def addmm(call: Call) -> Tensor:
    """``beta * bias + alpha * left @ right``."""
    bias, left, right = call["self"], call.get("mat1", "batch1"), call.get("mat2", "batch2")
    names = [n for n in call.arguments if n in ("mat1", "batch1", "mat2", "batch2")]
    mask = product_mask(call, left, right)
    result: Tensor = call.run(**{"self": zeroed(bias), names[0]: zeroed(left), names[1]: zeroed(right)})
    return mark(result, meet([(mask, result.shape), (mask_of(bias), extent(bias))]))


@rule("linear")
def linear(call: Call) -> Tensor:
    """Where it does not arrive decomposed."""
    value, weight, bias = call["input"], call["weight"], call["bias"]
    result: Tensor = call.again(lambda: torch.matmul(value, weight.t()))
    return result if bias is None else call.again(torch.add, result, bias)


def channels_and_places(call: Call, value: Tensor, dim: int) -> tuple[Tensor, Mask]:
    """The states of the arriving channels, and where in the batch and the pointlike dimensions they exist (clause 6)."""
    mask = mask_of(value)
    kernel, ones = call["weight"].shape[2:], call["stride"]
    point = [n == 1 and ones[i % len(ones)] == 1 and call["padding"][i % len(call["padding"])] == 0 for i, n in enumerate(kernel)]
    free = [*range(dim), *(dim + 1 + i for i, alone in enumerate(point) if alone)]
    if mask is None or all(mask.shape[d] == 1 for d in free):
        return channel_states(value, dim, call.name), None
    places = mask.amax([d for d in range(mask.ndim) if d not in free], keepdim=True)
    inside = mark(value.detach(), mask.amax(free, keepdim=True))
    channels = channel_states(inside, dim, call.name)
    shape = [1] * value.ndim
    shape[dim] = -1
    product = join(places, channels.reshape(shape))
    if product is not None and bool(((mask == DEAD) & (product == ALIVE)).any()):
        raise no_semantics(call.name, "its channels vary over the batch or over space")
    return channels, places


@rule("convolution", "_convolution", "convolution_overrideable")
def convolution(call: Call) -> Tensor:
    """Convolutions of any rank, grouped, depthwise, transposed (clause 6)."""
    value, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"]
    dim = value.ndim - weight.ndim + 1
    channels, places = channels_and_places(call, value, dim)
    channels = channels.reshape(groups, -1)
    own = mask_of(weight)
    own = uniform(ALIVE, weight.ndim, weight.device) if own is None else own
    states = own.amax(tuple(range(2, weight.ndim))).expand(weight.shape[:2])
    states = states.reshape(groups, -1, states.shape[1])  # (group, row, k)
    states = states.mT if call["transposed"] else states
    used = states.amax(1)
    live = used.amax(1, keepdim=True) != DEAD
    agree(torch.where(live, channels, WILD), torch.where(live, used, WILD), drops=call.selection)
    rows = rows_of(states, torch.where(live, used, channels))
    shape = [1] * value.ndim
    shape[dim] = -1
    result: Tensor = call.run(input=zeroed(value), weight=zeroed(weight), bias=None if bias is None else zeroed(bias))
    mask = rows.reshape(shape)
    mask = mask if places is None else torch.minimum(mask, exists(places) * ALIVE).to(torch.int8)
    if bias is None:
        return mark(result, mask)
    return mark(result, meet([(mask, result.shape), (full(mask_of(bias), bias).reshape(shape), rows.reshape(shape).shape)]))
