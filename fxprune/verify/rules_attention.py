"""Fused attention, by its definition: ``softmax(scale * q k^T + bias) v``.

1. The scale is the original one: ``1 / sqrt(d)`` with the ORIGINAL d, whether or not elements of d exist.
2. Every product and the softmax go through the rules. What else a fused kernel returns serves its backward pass: left empty.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxprune.verify.call import Call, rule


@rule(
    *("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_attention_math"),
    *("_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math_for_mps"),
)
def attention(call: Call) -> Any:
    """Clauses 1 and 2; heads of k and v are repeated where q has more (grouped-query attention)."""
    q, k, v = call["query"], call["key"], call["value"]
    bias, causal, scale = call.get("attn_mask", "attn_bias"), bool(call.get("is_causal")), call.get("scale")
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale

    def definition() -> Tensor:
        keys, values = k, v
        if q.ndim > 3 and k.shape[-3] != q.shape[-3]:
            times = q.shape[-3] // k.shape[-3]
            keys, values = (t.repeat_interleave(times, -3) for t in (k, v))
        scores = torch.matmul(q, keys.transpose(-2, -1)) * scale
        if causal:
            later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        if bias is not None:
            scores = scores.masked_fill(bias.logical_not(), -math.inf) if bias.dtype == torch.bool else scores + bias
        return torch.matmul(torch.softmax(scores, -1), values)

    result = call.again(definition)
    empty = [q.new_empty(0) for _ in range(len(call.func._schema.returns) - 1)]
    return (result, *empty) if empty else result
