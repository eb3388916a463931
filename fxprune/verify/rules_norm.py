"""Normalizations: statistics over what exists.

1. Batch norm acts channel by channel (dimension 1): the input's channels and the parameters' must agree; in the selection layout
   the parameters may drop channels that arrive. Each channel's own statistics need no mask.
2. Layer norm and group norm mix: mean and variance are taken over the elements that exist, then scale and shift are pointwise.
3. Where existence does not vary along the normalized dimensions the operator runs as it is.
4. Weight norm: ``v * g / |v|`` with the norm over the elements of v that exist.
5. Batch norm by the batch's own statistics, which is how weights are standardised, takes them over the elements that exist.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxprune.verify.call import Call, rule, tensors, zeroed
from fxprune.verify.existence import ALIVE, DEAD, Mask, extent, mark, mask_of, meet, no_semantics
from fxprune.verify.rules_contraction import channel_states
from fxprune.verify.rules_reduction import live_moments, varies


@rule(
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "batch_norm", "cudnn_batch_norm"),
    *("_batch_norm_with_update", "_batch_norm_no_update", "miopen_batch_norm", "_native_batch_norm_legit_functional"),
)
def batch_norm(call: Call) -> Any:
    """Clause 1."""
    value: Tensor = call["input"]
    named = ("weight", "bias", "running_mean", "running_var")
    parameters = [p for p in (call.get(name) for name in named) if p is not None]
    others = [d for d in range(value.ndim) if d != 1]
    if call.get("training", "use_input_stats") and call.removed and varies(mask_of(value), others):
        return live_batch_norm(call, value)
    if varies(mask_of(value), others):
        return _elementwise(call, value, parameters)
    states: Mask = channel_states(value, 1, call.name)
    own = meet([(mask_of(p), p.shape) for p in parameters]) if parameters else None
    if call.selection and own is not None and states is not None:
        if bool(((states == DEAD) & (own == ALIVE)).any()):
            raise no_semantics(call.name, "its parameters have channels that do not arrive")
        states = own
    elif parameters:
        states = meet([(states, value.shape[1:2]), (own, value.shape[1:2])])
    result = call.run()
    shape = [1] * value.ndim
    shape[1] = -1
    outputs = tensors(result)
    mark(outputs[0], None if states is None else states.reshape(shape))
    for statistic in outputs[1:]:
        mark(statistic, states if statistic.shape == value.shape[1:2] else None)
    return result


def _elementwise(call: Call, value: Tensor, parameters: list[Tensor]) -> Any:
    """With given statistics a batch norm is elementwise, whatever existence depends on."""
    shape = (1, -1, *(1,) * (value.ndim - 2))
    sides = [(mask_of(value), tuple(value.shape))]
    for parameter in parameters:
        mask = mask_of(parameter)
        sides.append((None if mask is None else mask.reshape(shape), (1, value.shape[1], *shape[2:])))
    result = call.run()
    mark(tensors(result)[0], meet(sides))
    return result


def live_batch_norm(call: Call, value: Tensor) -> Any:
    """Clause 5."""
    shape = [1] * value.ndim
    shape[1] = -1
    unscaled = normalized(value, [d for d in range(value.ndim) if d != 1], call.get("eps", "epsilon"))

    def definition() -> Tensor:
        result = unscaled if call["weight"] is None else unscaled * call["weight"].reshape(shape)
        return result if call["bias"] is None else result + call["bias"].reshape(shape)

    result = call.again(definition)
    empty = [value.new_empty(0) for _ in range(len(call.func._schema.returns) - 1)]
    return (result, *empty) if empty else result


def normalized(value: Tensor, dims: list[int], eps: float) -> Tensor:
    """Clause 2, before scale and shift; marked with the value's mask."""
    mask = mask_of(value)
    assert mask is not None
    mean, variance = live_moments(value, mask, dims)
    return mark((value - mean) * (variance + eps).rsqrt(), mask)


@rule("native_layer_norm", "layer_norm")
def layer_norm(call: Call) -> Any:
    """Clauses 2 and 3; the statistics that the native operator returns beside the result are given as they are."""
    value, weight, bias = call["input"], call.get("weight"), call.get("bias")
    dims = list(range(value.ndim - len(call["normalized_shape"]), value.ndim))
    parts = [(mask_of(t), extent(t)) for t in (value, weight, bias) if t is not None]
    mask = meet(parts)
    result = call.run()
    first = result if isinstance(result, Tensor) else result[0]
    if call.removed and varies(mask_of(value), dims):
        first = normalized(value, dims, call["eps"])
        first = first * weight if weight is not None else first
        first = first + bias if bias is not None else first
    mark(first, mask)
    return first if isinstance(result, Tensor) else (first, *result[1:])


@rule("native_group_norm", "group_norm")
def group_norm(call: Call) -> Any:
    """Clauses 2 and 3."""
    value, weight, bias, groups = call["input"], call.get("weight"), call.get("bias"), call.get("group", "num_groups")
    shape = [1, value.shape[1], *[1] * (value.ndim - 2)]
    states = channel_states(value, 1, call.name)
    parts: list[tuple[Mask, Any]] = [(states, states.shape)]
    parts += [(mask_of(t), extent(t)) for t in (weight, bias) if t is not None]
    mask = meet(parts)
    result = call.run()
    first = result if isinstance(result, Tensor) else result[0]
    if call.removed:
        blocks = mark(value.reshape(value.shape[0], groups, value.shape[1] // groups, -1), states.reshape(1, groups, -1, 1))
        if mask_of(blocks) is not None and varies(mask_of(blocks), [2]):
            first = normalized(blocks, [2, 3], call["eps"]).reshape(value.shape)
            first = first * weight.reshape(shape) if weight is not None else first
            first = first + bias.reshape(shape) if bias is not None else first
    mark(first, None if mask is None else mask.expand(value.shape[1]).reshape(shape))
    return first if isinstance(result, Tensor) else (first, *result[1:])


@rule("_fused_rms_norm", "rms_norm")
def rms_norm(call: Call) -> Any:
    """Clause 2 with the mean square, where it does not arrive decomposed."""
    value, weight = call["input"], call.get("weight")
    dims = list(range(value.ndim - len(call["normalized_shape"]), value.ndim))
    eps = torch.finfo(value.dtype).eps if call["eps"] is None else call["eps"]

    def definition() -> tuple[Tensor, Tensor]:
        scale = (value.square().mean(dims, keepdim=True) + eps).rsqrt()
        return value * scale if weight is None else value * scale * weight, scale

    result = call.again(definition)
    return result[0] if call.name == "rms_norm" else result


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(call: Call) -> Any:
    """Clause 4."""
    v, g, dim = call["v"], call["g"], call["dim"] % call["v"].ndim
    dims = [d for d in range(v.ndim) if d != dim]
    size = call.again(torch.linalg.vector_norm, v, 2, dims, keepdim=True)
    mask = meet([(mask_of(v), extent(v)), (mask_of(g), extent(g))])
    result = mark(zeroed(v) * (g / torch.where(size == 0, math.inf, size)), mask)
    return result if call.name == "_weight_norm" else (result, size)
