"""Rows of a layer: at sampled output positions, what goes in and what comes out.

1. ``positions`` draws, for every image of a batch, as many output positions as asked, without repetition, or all where there are not more.
   A convolution's positions are those of its output map; a linear layer's are all dimensions between the first and the last.
2. ``inputs_at`` gathers the window that a convolution multiplies at a position, padding, stride, dilation and groups included, and nothing of
   the rest of the map; ``outputs_at`` the outputs there. Columns of a block run over its input channels, then over the window, as in the weight.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def positions(module: nn.Module, output: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Clause 1: ``(images, positions)``, on the output's device; the generator is one of the CPU."""
    images, _, places = as_map(module, output).shape
    if places <= count:
        drawn = torch.arange(places, device="cpu").expand(images, -1)
    else:
        drawn = torch.rand(images, places, generator=generator, device="cpu").topk(count, dim=1, sorted=False).indices
    return drawn.to(output.device)


def as_map(module: nn.Module, value: Tensor) -> Tensor:
    """What a layer puts out, as ``(images, channels, places)``."""
    if isinstance(module, _ConvNd):
        batched = value if value.dim() > len(module.kernel_size) + 1 else value.unsqueeze(0)
        return batched.flatten(2)
    rows = value if value.dim() > 1 else value.unsqueeze(0)
    return rows.reshape(rows.shape[0], -1, rows.shape[-1]).transpose(1, 2)


def outputs_at(module: nn.Module, value: Tensor, places: Tensor) -> Tensor:
    """``(images x positions, channels)``; a new tensor."""
    found = as_map(module, value)
    picked = found.gather(2, places[:, None].expand(-1, found.shape[1], -1))
    return picked.transpose(1, 2).flatten(0, 1)


def inputs_at(module: Any, value: Tensor, places: Tensor) -> Tensor:
    """``(images x positions, blocks, columns)``; a new tensor."""
    if not isinstance(module, _ConvNd):
        return outputs_at(module, value, places)[:, None]
    rank = len(module.kernel_size)
    x = value if value.dim() > rank + 1 else value.unsqueeze(0)
    amounts = module._reversed_padding_repeated_twice
    if any(amounts):
        x = F.pad(x, amounts, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    sizes = x.shape[2:]
    reach = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    out = [(size - r) // s + 1 for size, r, s in zip(sizes, reach, module.stride, strict=True)]
    corner, rest = torch.zeros_like(places), places
    strides = [1] * rank
    for dim in range(rank - 2, -1, -1):
        strides[dim] = strides[dim + 1] * sizes[dim + 1]
    for dim in range(rank - 1, -1, -1):
        corner = corner + (rest % out[dim]) * module.stride[dim] * strides[dim]
        rest = rest // out[dim]
    offsets = [
        sum(i * d * s for i, d, s in zip(index, module.dilation, strides, strict=True))
        for index in product(*map(range, module.kernel_size))
    ]
    window = corner[:, :, None] + torch.tensor(offsets, device=places.device)
    images, count, taps = window.shape
    flat = window.reshape(images, 1, -1).expand(-1, x.shape[1], -1)
    picked = x.flatten(2).gather(2, flat).reshape(images, x.shape[1], count, taps)
    return picked.permute(0, 2, 1, 3).reshape(images * count, module.groups, -1)
