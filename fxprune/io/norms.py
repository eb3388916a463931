"""L2 norms of channels, out of tensors that are read in pieces.

1. The norm of an atom is that of score/scores.py (``atom_norms``): over all of a weight's entries that belong to it, in float32 for half
   precision; sums over pieces are added in float64.
2. A tensor is read once for all its axes that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fxprune.io.container import Scratch

Fetch = Callable[[int, int], Tensor]
Wanted = Iterable[tuple[int, int]]


def norms(
    shape: Sequence[int], fetch: Fetch, ranges: Iterable[tuple[int, int]], wanted: Wanted, scratch: Scratch
) -> dict[int, Tensor]:
    """The norms of the atoms of each wanted (dimension, blocks of rows); ``fetch(a, b)`` gives rows a to b - 1."""
    blocks = dict(wanted)
    total = {dim: torch.zeros(number, shape[dim], dtype=torch.float64, device="cpu") for dim, number in blocks.items()}
    for start, stop in ranges:
        piece = fetch(start, stop)
        if piece.dtype in (torch.float16, torch.bfloat16):
            piece = scratch.take(tuple(piece.shape), torch.float32).copy_(piece)
        for dim, number in blocks.items():
            rows = _sums(piece, dim)
            if dim == 0:
                total[0][0, start:stop] += rows
            else:
                total[dim].index_add_(0, torch.arange(start, stop, device="cpu") // (shape[0] // number), rows)
    return {dim: found.sqrt().flatten() for dim, found in total.items()}


def _sums(piece: Tensor, dim: int) -> Tensor:
    """Sums of squares per row, (rows,), or per row and index of another dimension, (rows, size); float64."""
    kept = {0, dim}
    over = [d for d in range(piece.dim()) if d not in kept]
    found = torch.linalg.vector_norm(piece, dim=over) if over else piece.abs()
    return found.double().square()
