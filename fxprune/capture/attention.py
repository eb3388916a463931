"""Legalization: ``nn.MultiheadAttention`` as explicit projections around ``scaled_dot_product_attention``.

1. The replacement holds the same parameters under the same names, so state-dict keys do not change.
2. The scale is that of the original head dimension, written down as a number.
3. Attention weights are computed only where the program asks for them and uses them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class ExplicitAttention(nn.Module):
    """What ``nn.MultiheadAttention`` computes, for batched inputs (clauses 1 to 3)."""

    # nn.TransformerEncoderLayer asks for these before it takes a fused path, which hides the projections.
    _qkv_same_embed_dim = False
    in_proj_weight: Any
    in_proj_bias: Any
    q_proj_weight: Any
    k_proj_weight: Any
    v_proj_weight: Any
    out_proj: Any
    embed_dim: int
    num_heads: int
    head_dim: int
    dropout: float
    batch_first: bool

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Any, Any]:
        """Shapes ``(n, t, c)``, or ``(t, n, c)`` unless ``batch_first``; returns (output, weights or None)."""
        q, k, v = self._project(query, key, value)
        if not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        heads = self.num_heads
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        scale = self.head_dim**-0.5
        mask = self._mask(q, key_padding_mask, attn_mask)
        dropout = self.training * self.dropout if self.dropout else 0.0
        causal = bool(is_causal) and mask is None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        weights = None
        if need_weights:
            logits = (q * scale) @ k.transpose(-2, -1)
            weights = (logits if mask is None else logits + mask).softmax(-1)
            weights = weights.mean(1) if average_attn_weights else weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _project(self, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
        bias = self.in_proj_bias
        width = self.embed_dim
        if self.in_proj_weight is None:
            parts = (None,) * 3 if bias is None else (bias[:width], bias[width : 2 * width], bias[2 * width :])
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, parts, strict=True))
            return q, k, v
        weight = self.in_proj_weight
        if query is key and key is value:
            q, k, v = F.linear(query, weight, bias).chunk(3, dim=-1)
            return q, k, v
        first, rest = (None, None) if bias is None else (bias[:width], bias[width:])
        q = F.linear(query, weight[:width], first)
        if key is value:
            k, v = F.linear(key, weight[width:], rest).chunk(2, dim=-1)
            return q, k, v
        second, third = (None, None) if bias is None else (bias[width : 2 * width], bias[2 * width :])
        return q, F.linear(key, weight[width : 2 * width], second), F.linear(value, weight[2 * width :], third)

    def _mask(self, q: Any, padding: Any, mask: Any) -> Any:
        """One additive mask out of a key padding mask ``(n, s)`` and an attention mask ``(t, s)`` or ``(n * heads, t, s)``."""
        found = None
        if mask is not None:
            found = _additive(mask, q)
            if mask.dim() == 3:
                found = found.unflatten(0, (-1, self.num_heads))
        if padding is not None:
            extra = _additive(padding, q)[:, None, None, :]
            found = extra if found is None else found + extra
        return found


def _additive(mask: Any, like: Any) -> Any:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return mask


def legalize(root: nn.Module) -> bool:
    """Turn every ``nn.MultiheadAttention`` of a structural clone into its explicit form, in place; True if there was one."""
    found = False
    for module in root.modules():
        if isinstance(module, nn.MultiheadAttention) and module.bias_k is None and not module.add_zero_attn:
            module.__dict__.pop("_qkv_same_embed_dim", None)
            if "in_proj_bias" not in module._parameters:
                module.__dict__.setdefault("in_proj_bias", None)
            module.__class__ = ExplicitAttention  # type: ignore[assignment]
            found = True
    return found
