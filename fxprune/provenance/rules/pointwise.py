"""Elementwise operators.

1. Operands are aligned as broadcasting aligns them. Factors of different operands that vary along a common dimension are
   coupled elementwise; the result carries one of them.
2. A factor along a dimension where every other operand has size 1 (or no such dimension) is carried on uncoupled.
3. A factor along a dimension where another operand has full size but no factor is pinned: those elements cannot go. If it varies along
   other dimensions too (the channels of a head that meet one number per head), the positions along that one stay, and each keeps equally
   many of its channels.
4. In-place forms leave their destination's provenance as it is: by 1 and 3 it already says all there is to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.provenance.factor import Value
from fxprune.provenance.tracker import Rule, Tracker

# Results of these have the dtype of their operands (all of one floating dtype), so the meta kernel need not run.
SAME_DTYPE = frozenset(
    "add sub mul div relu silu sigmoid tanh hardswish hardsigmoid hardtanh gelu leaky_relu elu mish softplus clamp clamp_min clamp_max "
    "exp sqrt rsqrt neg pow abs log reciprocal sin cos erf square where maximum minimum _prelu_kernel".split()
)


# Tagged in torch of today; torch 2.6 left the tag out.
UNTAGGED = frozenset("leaky_relu celu mish threshold".split())


def apply(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clauses 1 to 4."""
    operands = [x for x in args if isinstance(x, Tensor)]
    if kwargs:
        operands += [x for key, x in kwargs.items() if isinstance(x, Tensor) and key != "out"]
    destination = kwargs.get("out") if kwargs else None
    if destination is None and func._schema.is_mutable:
        destination = args[0]
    values = [t.value(x) for x in operands]
    if destination is not None:
        t.merge(tuple(destination.shape), values if destination is args[0] else [*values, t.value(destination)])
        return destination
    result = _result(func, args, kwargs, operands, values)
    if isinstance(result, Tensor):
        t.bind(result, t.merge(tuple(result.shape), values))
        if not result.is_floating_point():
            t.fold(func, args, kwargs, result)
    else:
        for item in result:
            if isinstance(item, Tensor):
                t.bind(item, t.merge(tuple(item.shape), values))
    return result


def _result(func: Any, args: Sequence[Any], kwargs: dict[str, Any], operands: list[Tensor], values: list[Value]) -> Any:
    first = operands[0]
    if first.is_floating_point() and func._schema.name[6:] in SAME_DTYPE and all(x.dtype == first.dtype for x in operands):
        shapes = [value.shape for value in values]
        shape = shapes[0] if all(s == shapes[0] for s in shapes) else torch.broadcast_shapes(*shapes)
        return torch.empty(shape, dtype=first.dtype, device="meta")
    return func(*args, **kwargs)


def identity(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Operators that give back their first operand's elements where they were (copies, casts, triangles, softmax)."""
    if "device" in kwargs:
        kwargs = {**kwargs, "device": "meta"}
    result = func(*args, **kwargs)
    value = t.value(args[0])
    t.bind(result, value.factors)
    t.fold(func, args, kwargs, result)
    return result


def untouched(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """In-place operators that overwrite every element with something that has no channels."""
    return args[0]


def with_mask(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Elementwise operators that return (result, mask)."""
    result = func(*args, **kwargs)
    for item in result:
        t.bind(item, t.value(args[0]).factors)
    return result


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        "hardswish hardswish_ _prelu_kernel zeros_like ones_like full_like empty_like rand_like randn_like randint_like masked_fill "
        "masked_fill_ copy_ where lerp addcmul addcdiv clamp bernoulli rrelu dropout hardtanh hardtanh_ elu "
        "logical_not fmod remainder".split(),
        apply,
    ),
    **dict.fromkeys(
        "clone contiguous detach detach_ alias lift lift_fresh lift_fresh_copy _to_copy to tril triu tril_ triu_ _softmax "
        "_log_softmax _safe_softmax softmax log_softmax fake_quantize_per_tensor_affine rrelu_with_noise nan_to_num".split(),
        identity,
    ),
    **dict.fromkeys("fill_ zero_ uniform_ normal_ bernoulli_ random_ exponential_".split(), untouched),
    "native_dropout": with_mask,
}
