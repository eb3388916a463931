"""What a contraction makes of facts: output channels all of whose inputs are constants.

1. An output channel is constant if every input that it has a weight other than zero for is a constant, all-zero filters included.
2. Where the image is padded with zeros and a constant is not zero, the result differs at the border: it is computed pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.absorb.fact import Fact, narrowed, settled, unknown
from fxprune.absorb.readers import Reader, chunk, image, kernel


def contracted(reader: Reader, x: Fact, bias: Tensor | None, shape: Sequence[int]) -> Fact:
    """Clauses 1 and 2."""
    if reader.blocks > 1 and not reader.depthwise:
        return unknown(shape)
    if x.calm and _audible(reader):
        return unknown(shape)
    known = _constants(reader, x)
    wanted = torch.arange(reader.width, device="cpu")
    sure = wanted[_closed(reader, wanted, ~known.isnan())]
    if not len(sure):
        return unknown(shape)
    values = known.nan_to_num(0.0)
    kernels = kernel(reader, np.arange(len(values)), values, sure)
    shift = torch.zeros(len(sure), dtype=torch.float64, device="cpu")
    if bias is not None:
        shift = bias.detach().cpu().to(torch.float64)[sure]
    rank = len(shape)
    if reader.uneven and bool((kernels != 0).any()):
        sides = x.shape[reader.channel + 1 :]
        laid = image(reader, kernels, sides) + shift.reshape(-1, *[1] * len(sides))
    else:
        laid = (kernels.flatten(1).sum(1) if kernels.dim() > 1 else kernels) + shift
        laid = laid.reshape(-1, *[1] * (rank - reader.made - 1))
    full = torch.full((shape[reader.made], *laid.shape[1:]), torch.nan, dtype=torch.float64, device="cpu")
    full[sure] = laid
    mean = full.reshape((1,) * reader.made + tuple(full.shape))
    return settled(mean, torch.zeros((1,) * rank, dtype=torch.float64, device="cpu"), shape)


def _constants(reader: Reader, x: Fact) -> Tensor:
    """Per input channel: its constant, NaN where there is none or where it varies; ``(channels,)``."""
    small = narrowed(x.mean)
    size = x.shape[reader.channel]
    if any(s > 1 for d, s in enumerate(small.shape) if d != reader.channel):
        lines = small.movedim(reader.channel, 0).reshape(small.shape[reader.channel], -1)
        flat = torch.where(lines.amax(1) == lines.amin(1), lines[:, 0], torch.nan)
    else:
        flat = small.reshape(-1)
    std = x.std.reshape((1,) * (small.dim() - x.std.dim()) + tuple(x.std.shape))
    spread = std.movedim(reader.channel, 0).reshape(std.shape[reader.channel], -1).amax(1)
    return torch.where(spread.expand(size) > 0, torch.nan, flat.expand(size))


def _audible(reader: Reader) -> bool:
    """A first number of every row is not zero, so a row of which no input is a constant is none either."""
    weight = reader.weight.detach()
    rows: Any = slice(None)
    sides = (rows, 0) if reader.out == 0 else (rows if reader.blocks > 1 else 0, rows)
    return bool((weight[(*sides, *[0] * (weight.dim() - 2))] != 0).all())


def _closed(reader: Reader, rows: Tensor, known: Tensor) -> Tensor:
    """Clause 1, per row."""
    weight = reader.weight.detach()
    if reader.blocks > 1:  # depthwise: a row has one input
        each = weight.shape[0] // reader.blocks if reader.dim == 1 else weight.shape[1]
        channel = rows // each
        if reader.dim == 1:
            zero = (weight.flatten(1) == 0).all(1)[rows.to(weight.device)].cpu()
        else:
            zero = (weight.flatten(2) == 0).all(2)[channel, rows % each].cpu()
        return known[channel] | zero
    of_rows = weight if reader.out == 0 else weight.transpose(0, 1)
    open_ = (~known).nonzero().flatten()
    if not len(open_):
        return torch.ones(len(rows), dtype=torch.bool, device="cpu")
    first = of_rows.select(1, int(open_[0]))  # settles most rows
    closed = (first.reshape(len(first), -1) == 0).all(1).cpu()[rows]
    left = closed.nonzero().flatten()
    if not len(left):
        return closed
    for start, step in _ranges(len(open_), chunk(weight) // max(1, len(rows) * weight[0, 0].numel())):
        columns = open_[start : start + step]
        part = of_rows.index_select(1, columns.to(weight.device)).index_select(0, rows[left].to(weight.device))
        closed[left] = (part.flatten(1) == 0).all(1).cpu()
        left = left[closed[left]]
        if not len(left):
            break
    return closed


def _ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    """All but the first one, in pieces of ``step``."""
    yield from ((start, max(1, step)) for start in range(1, count, max(1, step)))
