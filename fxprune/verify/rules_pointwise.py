"""Pointwise operators.

1. The operands' masks meet (clause 4 of ``existence``); values are computed as they are: what happens in dead places stays there.
2. Operators tagged ``pointwise`` come here by their tag; the names below lack it.
3. ``glu`` is pointwise in the two halves of its operand.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fxprune.verify.call import Call, mark_all, rule
from fxprune.verify.existence import extent, full, mark, mask_of, meet

UNTAGGED = (
    *("hardswish", "hardsigmoid", "hardtanh", "hardshrink", "softshrink", "native_dropout", "_prelu_kernel", "masked_fill"),
    *("where", "clamp", "clamp_min", "clamp_max", "lerp", "addcmul", "addcdiv", "elu", "celu", "selu", "leaky_relu"),
    *("threshold", "softplus", "mish", "silu", "log_sigmoid_forward", "rrelu_with_noise", "nan_to_num", "round"),
    *("_to_copy", "to", "clone", "contiguous", "copy", "fill", "zero", "tril", "triu", "bernoulli", "_conj_physical"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "floor_divide"),
    *("uniform", "normal", "random", "exponential", "geometric", "cauchy", "log_normal", "_fused_dropout"),
    *("lift", "lift_fresh_copy"),
)


@rule(*UNTAGGED)
def pointwise(call: Call) -> Any:
    """Clause 1."""
    return mark_all(call.run(), meet([(mask_of(operand), extent(operand)) for operand in call.operands]))


@rule("glu")
def glu(call: Call) -> Tensor:
    """Clause 3."""
    value: Tensor = call["self"]
    dim = call["dim"] % value.ndim
    mask = full(mask_of(value), value)
    half = value.shape[dim] // 2
    parts = mask.narrow(dim, 0, half), mask.narrow(dim, half, half)
    result: Tensor = call.run()
    return mark(result, meet([(part, part.shape) for part in parts]))
