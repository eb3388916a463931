"""Pooling, interpolation, sampling: operators that mix positions of one plane.

1. Existence must not vary within the last k dimensions, k being the operator's rank; it is carried per plane.
2. ``im2col`` lays each channel's window out as channels: its state is repeated; ``col2im`` goes back.
3. An embedding looks rows up: existence must not vary over the rows of its table.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxprune.verify.call import Call, mark_all, rule
from fxprune.verify.existence import DEAD, Mask, full, mark, mask_of, no_semantics
from fxprune.verify.rules_contraction import channel_states

RANKS = ("1d", "2d", "3d")
POOLS = (*("max_pool{}_with_indices", "max_pool{}", "avg_pool{}", "adaptive_avg_pool{}", "_adaptive_avg_pool{}"),)
SAMPLERS = (
    *("upsample_nearest{}", "_upsample_nearest_exact{}", "upsample_bilinear{}", "upsample_bicubic{}", "upsample_linear{}"),
    *("upsample_trilinear{}", "_upsample_bilinear{}_aa", "_upsample_bicubic{}_aa", "reflection_pad{}", "replication_pad{}"),
    *("mkldnn_max_pool{}", "fractional_max_pool{}", "adaptive_max_pool{}", "_upsample_lanczos{}_aa"),
)


def plane_mask(value: Tensor, rank: int, name: str) -> Mask:
    """The mask without its spatial variation, which may only be between wild and alive (clause 1)."""
    mask = mask_of(value)
    if mask is None:
        return None
    dims = list(range(value.ndim - rank, value.ndim))
    high = mask.amax(dims, keepdim=True)
    if bool(((mask == DEAD) & (high != DEAD)).any()):
        raise no_semantics(name, "existence varies within a plane")
    return high


@rule(*(pattern.format(rank) for pattern in (*POOLS, *SAMPLERS) for rank in RANKS))
def planes(call: Call) -> Any:
    """Clause 1."""
    rank = next(i for i, text in enumerate(RANKS, 1) if text in call.name)
    value: Tensor = call.get("self", "input")
    return mark_all(call.run(), plane_mask(value, rank, call.name))


@rule("grid_sampler_2d", "grid_sampler_3d", "grid_sampler")
def grid_sampler(call: Call) -> Any:
    """Clause 1; the grid is a value of its own."""
    value: Tensor = call["input"]
    if mask_of(call["grid"]) is not None and bool((full(mask_of(call["grid"]), call["grid"]) == DEAD).any()):
        raise no_semantics(call.name, "its grid varies with the removed channels")
    return mark_all(call.run(), plane_mask(value, value.ndim - 2, call.name))


@rule("im2col", "col2im")
def columns(call: Call) -> Tensor:
    """Clause 2."""
    value: Tensor = call["self"]
    dim = value.ndim - (3 if call.name == "im2col" else 2)
    states, window = channel_states(value, dim, call.name), math.prod(call["kernel_size"])
    if call.name == "im2col":
        states = states.repeat_interleave(window)
    else:
        states = states.reshape(-1, window)
        if bool((states != states[:, :1]).any()):
            raise no_semantics(call.name, "existence varies within a window")
        states = states[:, 0]
    result: Tensor = call.run()
    shape = [1] * result.ndim
    shape[result.ndim - (2 if call.name == "im2col" else 3)] = -1
    return mark(result, states.reshape(shape))


@rule("embedding")
def embedding(call: Call) -> Tensor:
    """Clause 3."""
    mask = mask_of(call["weight"])
    if mask is not None and mask.shape[0] > 1:
        raise no_semantics(call.name, "rows of its table are removed")
    result: Tensor = call.run()
    return mark(result, None if mask is None else mask.reshape((1,) * (result.ndim - 1) + (-1,)).to(torch.int8))


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> tuple[Tensor, ...]:
    """Clause 3, per bag: what does not exist is summed, averaged or compared in its own column only."""
    mask = mask_of(call["weight"])
    if mask is not None and mask.shape[0] > 1:
        raise no_semantics(call.name, "rows of its table are removed")
    bags, *more = call.run()
    columns = None if mask is None else mask.reshape(1, -1).to(torch.int8)
    for item in more:
        if item.shape == bags.shape:  # the rows in which maxima were found
            mark(item, columns)
    return (mark(bags, columns), *more)
